"""Sources of stories: every published form is read as the same stories, and bad input is named."""

import csv
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from tinygpt_jax.data import stories, story_files
from tinygpt_jax.data.stories import LeftOut, cut, find_source
from tinygpt_jax.errors import UsageError, UserError

STORIES = ['Tom said, "Hi!"\n\nHe ran.', "Lily saw a “cat”, too.", "The café\nwas warm.", "One, two.", "The end."]


def read(path, skip_bad=False, **options):
    """All stories of a source as (held out, text), and what was left out."""
    left_out = LeftOut()
    pieces = cut(find_source(str(path), 10, **options), skip_bad, left_out, lambda amount: None)
    return [(piece.held_out, text) for piece in pieces for text in piece.stories], left_out


def texts(path, **options):
    return [text for _, text in read(path, **options)[0]]


def write(path, texts=STORIES):
    """Write stories in the format that the name says."""
    raw = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    if raw.suffix == ".txt":
        raw.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    elif raw.suffix == ".jsonl":
        raw.write_text("".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts), encoding="utf-8")
    elif raw.suffix == ".csv":
        with raw.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("id", "text"), *((1, text) for text in texts)])
    else:
        pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), raw, row_group_size=2)
    if raw != path:
        content = raw.read_bytes()
        raw.unlink()
        half = len(content) // 2  # two members or frames, as parallel compressors write them
        pack = gzip.compress if path.suffix == ".gz" else zstandard.ZstdCompressor().compress
        path.write_bytes(pack(content[:half]) + pack(content[half:]))
    return path


@pytest.mark.parametrize("compression", ["", ".gz", ".zst"])
@pytest.mark.parametrize("form", [".txt", ".jsonl", ".csv", ".parquet"])
def test_every_format_holds_the_same_stories(tmp_path, form, compression):
    """A format that loses quotes, newlines inside a story, accents, or what follows a compressed member."""
    assert texts(write(tmp_path / f"s{form}{compression}")) == STORIES


@pytest.mark.parametrize(
    "content",
    [
        "One.\n<|endoftext|>\nTwo.\n\nStill two.\n<|endoftext|>\n",
        "One.<|endoftext|>Two.\n\nStill two.<|endoftext|>",
        "One.\r\n<|endoftext|>\r\nTwo.\n\nStill two.\r\n<|endoftext|>\r\n",
        "\ufeffOne.\n<|endoftext|>\n\n\n<|endoftext|>\nTwo.\n\nStill two.",
    ],
)
def test_txt_in_all_its_published_forms(tmp_path, content):
    """The separator becoming part of a story, or a blank line cutting one."""
    (tmp_path / "s.txt").write_bytes(content.encode())
    assert texts(tmp_path / "s.txt") == ["One.", "Two.\n\nStill two."]


@pytest.mark.parametrize("chunk", [7, 2**20])
def test_a_first_story_of_any_length_allowed_ends_at_the_separator(tmp_path, monkeypatch, chunk):
    """A file taken for one without separators because its first story is long: blank lines would cut it."""
    monkeypatch.setattr(story_files, "_CHUNK", chunk)
    monkeypatch.setattr(story_files, "LONGEST_STORY", 100)
    (tmp_path / "s.txt").write_text("One.\n\n" + "more " * 15 + "\n<|endoftext|>\nTwo.\n\nStill two.")
    assert [len(text) for text in texts(tmp_path / "s.txt")] == [80, 16]


def test_txt_without_a_separator_has_a_story_per_block(tmp_path):
    """A book becoming one story of a million tokens."""
    (tmp_path / "s.txt").write_text("One\nline.\n\nTwo.\n \n\nThree.\n")
    assert texts(tmp_path / "s.txt") == ["One\nline.", "Two.", "Three."]


@settings(deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=20), min_size=1), st.integers(1, 40))
def test_chunks_do_not_matter(tmp_path_factory, parts, chunk):
    """A separator or a character lying across two reads is missed."""
    path = tmp_path_factory.mktemp("chunks") / "s.txt"
    parts = ["start", *parts]
    path.write_bytes("<|endoftext|>".join(parts).encode())
    expected = [part.strip() for part in "<|endoftext|>".join(parts).split("<|endoftext|>")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(story_files, "_CHUNK", max(chunk, len("start<|endoftext|>")))
        if "\0" not in path.read_bytes()[: story_files._CHUNK].decode(errors="replace"):
            assert texts(path) == [part for part in expected if part]


def test_jsonl_and_csv_take_story_where_there_is_no_text(tmp_path):
    """The authors' own archive, whose field is `story`, being refused."""
    (tmp_path / "s.jsonl").write_text('{"story": "A."}\n\n{"text": "B.", "story": "C."}\n')
    (tmp_path / "s.csv").write_text("story\nA.\nB.\n")
    assert texts(tmp_path / "s.jsonl") == texts(tmp_path / "s.csv") == ["A.", "B."]


def test_records_keep_their_text_to_the_letter(tmp_path):
    """Defaults changing the text as published; a blank story becoming a row of nothing."""
    (tmp_path / "s.jsonl").write_text('{"text": " A.\\n"}\n{"text": " \\n"}\n{"text": ""}\n')
    found, left_out = read(tmp_path / "s.jsonl")
    assert found == [(None, " A.\n")]
    assert left_out.empty == 2


BAD = [
    ("s.txt", b"One.\n<|endoftext|>\nTwo\n\xff.\n<|endoftext|>\nThree.", "line 4 (byte 23): not valid UTF-8"),
    ("s.jsonl", b'{"text": "One."}\n{"text": \n{"text": "Three."}\n', "line 2: not JSON"),
    ("s.jsonl", b'{"text": "One."}\n{"title": "x"}\n{"text": "Three."}', "line 2: has no text field; its fields: ti"),
    ("s.jsonl", b'{"text": "One."}\n["x"]\n{"text": "Three."}', "line 2: not an object with a text field but a list"),
    ("s.jsonl", b'{"text": "One."}\n{"text": 3}\n{"text": "Three."}', "line 2: its text is not text but a number"),
    ("s.jsonl", b'{"text": "One."}\n{"text": "\xff"}\n{"text": "Three."}', "line 2: not valid UTF-8"),
    ("s.jsonl", b'{"text": "One."}\n{"text": "\\ud800"}\n{"text": "Three."}', "line 2: half a character: an escape"),
    ("s.jsonl", b'{"text": "One."}\n' + b"[" * 100_000 + b'\n{"text": "Three."}', "line 2: not JSON"),
    ("s.csv", b"id,text\n1,One.\n2\n3,Three.\n", "line 3: has no text field"),
    ("s.csv", b"id,text\n1,One.\n2,\xff\n3,Three.\n", "line 3: not valid UTF-8"),
]


@pytest.mark.parametrize("chunk", [20, 2**20])
@pytest.mark.parametrize(("name", "content", "message"), BAD)
def test_a_bad_record_stops_with_its_place_or_is_skipped(tmp_path, monkeypatch, name, content, message, chunk):
    """A broken line ending in a traceback, or vanishing without a word; a place counted from the last read."""
    monkeypatch.setattr(story_files, "_CHUNK", chunk)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}, {message}")
    assert "--skip-bad" in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400
    found, left_out = read(path, skip_bad=True)
    assert [text for _, text in found] == ["One.", "Three."]
    assert left_out.bad == 1 and message in left_out.first_bad[0]


def test_a_bad_row_of_a_table(tmp_path):
    """A null in a parquet file."""
    pq.write_table(pa.table({"text": ["One.", None, "Three."]}), tmp_path / "s.parquet")
    with pytest.raises(UserError, match="row 2: its text is not text but null"):
        read(tmp_path / "s.parquet")
    assert read(tmp_path / "s.parquet", skip_bad=True)[1].bad == 1
    raw = pa.array([b"One.", b"\xff\xfe", b"Three."], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"text": raw}), tmp_path / "s.parquet")
    with pytest.raises(UserError, match="row 2: not valid UTF-8"):
        read(tmp_path / "s.parquet")


def bad_files(folder):
    whole = {form: write(folder / f"whole{form}").read_bytes() for form in (".txt.gz", ".txt.zst", ".parquet")}
    yield "binary.txt", b"GIF89a\0\1\2", "is not a UTF-8 text file: its byte 6 is zero"
    yield "binary.jsonl", b"\0", "is not a UTF-8 text file"
    yield "cut.txt.gz", whole[".txt.gz"][:-5], "is damaged or cut short"
    yield "cut.txt.zst", whole[".txt.zst"][:-5], "is damaged or cut short"
    yield "not.txt.gz", b"not gzip at all", "is damaged or cut short"
    yield "not.txt.zst", b"not zstd at all", "is damaged or cut short"
    yield "cut.parquet", whole[".parquet"][:-5], "is not a whole parquet file"
    yield "empty.parquet", b"", "is not a whole parquet file"
    yield "other.csv", b"id,body\n1,x\n", "has no column text; its columns: id, body"
    yield "open.csv", b'text\n"never closed' + b"\nxxxxxxxxx" * 200, "not CSV"
    yield "endless.txt", b"word " * 1000, "no story ends within"


@pytest.mark.parametrize("index", range(11))
def test_a_file_that_is_not_what_its_name_says(tmp_path, monkeypatch, index):
    """A download cut short read as far as it goes, or a picture read as text."""
    monkeypatch.setattr(story_files, "LONGEST_STORY", 1000)
    name, content, message = list(bad_files(tmp_path))[index]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as caught:
        read(tmp_path / name, skip_bad=True)
    assert name in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)


def test_sources_that_cannot_be(tmp_path):
    """A typing mistake answered with a download or a traceback."""
    for name in ("s.pdf", "s.txt.zst.gz"):
        (tmp_path / name).write_bytes(b"x")
    for source in (tmp_path / "nowhere.txt", tmp_path / "s.pdf", tmp_path / "s.txt.zst.gz", tmp_path, "TinyStory"):
        with pytest.raises(UsageError, match="--data"):
            find_source(str(source), 10)


def test_a_pipe_is_refused(tmp_path):
    """Waiting for ever for what nobody writes into it; in a folder, it is no story file."""
    os.mkfifo(tmp_path / "s.txt")
    with pytest.raises(UsageError, match=r"s\.txt is a pipe or a device: write the stories to a file"):
        find_source(str(tmp_path / "s.txt"), 10)
    with pytest.raises(UsageError, match="holds no file of"):
        find_source(str(tmp_path), 10)


def test_a_folder_is_its_files_by_name_with_its_own_split_first(tmp_path):
    """The order of files depending on the disk; the held-out file being trained on."""
    for name, story in (("train-00001.txt", "B."), ("train-00000.jsonl", "A."), ("deep/validation-0.parquet", "V.")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [story])
    (tmp_path / "README.md").write_text("not a story")
    (tmp_path / ".hidden.txt").write_text("not a story")
    assert read(tmp_path)[0] == [(True, "V."), (False, "A."), (False, "B.")]
    source = find_source(str(tmp_path), 10)
    held_out = cut(source, False, LeftOut(), lambda amount: None, held_out_only=True)
    assert [piece.stories for piece in held_out] == [["V."]]


@pytest.mark.parametrize(
    ("names", "held_out"),
    [
        (["TinyStories-train.txt", "TinyStories-valid.txt"], ["TinyStories-valid.txt"]),
        (["default/train/0000.txt", "default/test/0000.txt"], ["default/test/0000.txt"]),
        (["contest.txt", "train.txt"], []),
        (["valid.txt", "test.txt"], []),
    ],
)
def test_which_files_are_held_out(tmp_path, names, held_out):
    """`contest` taken for a test; a folder of validation files with nothing left to train on."""
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, [name])
    assert [text for side, text in read(tmp_path)[0] if side] == held_out


def test_pieces_are_cut_by_size_and_never_lose_a_story(tmp_path, monkeypatch):
    """The last, smaller piece of a split forgotten."""
    monkeypatch.setattr(stories, "PIECE_CHARACTERS", 40)
    monkeypatch.setattr(stories, "PIECE_BUILTIN", 4)
    write(tmp_path / "train.txt", STORIES * 3)
    write(tmp_path / "valid.txt", STORIES)
    pieces = list(cut(find_source(str(tmp_path), 10), False, LeftOut(), lambda amount: None))
    assert [text for piece in pieces for text in piece.stories] == STORIES * 4
    assert len(pieces) == 8
    builtin = cut(find_source("builtin", 10), False, LeftOut(), lambda amount: None)
    assert [piece.stories for piece in builtin] == [range(0, 4), range(4, 8), range(8, 10)]


@pytest.mark.parametrize("form", [".txt", ".txt.gz", ".txt.zst", ".jsonl", ".csv", ".parquet"])
def test_progress_adds_up_to_the_total(tmp_path, form):
    """A bar that ends at 30 % or runs past its end."""
    source, seen = find_source(str(write(tmp_path / f"s{form}", STORIES * 100)), 10), []
    list(cut(source, False, LeftOut(), seen.append))
    assert sum(seen) == pytest.approx(source.total, rel=0.02)


@pytest.fixture
def hub_folder(tmp_path):
    """A dataset laid out like the hub's."""
    folder = tmp_path / "tiny_stories"
    (folder / "data").mkdir(parents=True)
    write(folder / "data" / "train-00000-of-00002-2d5a1467fff1081b.parquet", STORIES[:2])
    write(folder / "data" / "train-00001-of-00002-5852b56a2bd28fd9.parquet", STORIES[2:])
    write(folder / "data" / "validation-00000-of-00001-869c898b519ad725.parquet", ["Held out."])
    return folder


IN_HUB = [(True, "Held out."), *((False, text) for text in STORIES)]
RUN_HUB = """
import sys
from tinygpt_jax.data import hub, stories
hub.TINYSTORIES, hub.PATIENCE_SECONDS = sys.argv[1], 3.0
for streaming in (False, True):
    source = stories.find_source("tinystories", 10, streaming)
    pieces = stories.cut(source, False, stories.LeftOut(), lambda amount: None)
    print([(piece.held_out, text) for piece in pieces for text in piece.stories])
"""


def run_hub(name, home, **environment):
    """Read the dataset `name`, downloaded and streaming. A process of its own: the libraries read settings once."""
    environment = {**os.environ, "HF_HOME": str(home), **environment}
    command = [sys.executable, "-c", RUN_HUB, str(name)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_datasets_library_reads_the_layout_of_the_hub_and_keeps_a_copy(hub_folder, tmp_path):
    """The splits mixed up; a mode the library no longer has; a download wasted when the hub is out of reach."""
    home, nobody = tmp_path / "home", "http://127.0.0.1:1"
    result = run_hub(hub_folder, home)
    assert result.stdout == f"{IN_HUB}\n" * 2, result.stderr
    # What the library made of the local folder is what it makes of the hub's, under another name.
    made = next((home / "datasets" / "tiny_stories").rglob("dataset_info.json")).parent
    shutil.copytree(made, home / "datasets" / "someone___tiny_stories" / "default" / "0.0.0" / ("0" * 40))
    for offline in ("0", "1"):
        result = run_hub("someone/tiny_stories", home, HF_ENDPOINT=nobody, HF_HUB_OFFLINE=offline)
        assert result.stdout == f"{IN_HUB}\n" * 2, result.stderr


@pytest.mark.parametrize("answers", ["refused", "silent"])
def test_a_hub_out_of_reach_is_one_line_in_time(tmp_path, answers):
    """Minutes of retries against a hub that refuses, or for ever against one that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1] if answers == "silent" else 1
        start = time.monotonic()
        result = run_hub("roneneldan/TinyStories", tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{port}")
    assert time.monotonic() - start < 30
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("tinygpt_jax.errors.UnfinishedError: http://127.0.0.1")
    assert "--data builtin" in last and "file or folder" in last
