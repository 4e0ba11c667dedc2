"""The prepared corpus: its content, and that no accident leaves it half-made or changes it."""

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from tinygpt_jax.config import DataConfig
from tinygpt_jax.data import corpus as corpus_module
from tinygpt_jax.data import grammar, integrity, shards, stories
from tinygpt_jax.data.corpus import prepare
from tinygpt_jax.data.integrity import CHECKED
from tinygpt_jax.data.words import frequent_words
from tinygpt_jax.errors import UnfinishedError, UserError
from tinygpt_jax.files import own_checksum
from tinygpt_jax.tokenizer import gpt2

TEXTS = [text for text, _ in grammar.write_stories(300, seed=1)]


@pytest.fixture
def small_pieces(monkeypatch):
    """Pieces so small that 300 stories make about 25."""
    monkeypatch.setattr(stories, "PIECE_CHARACTERS", 5000)
    monkeypatch.setattr(stories, "PIECE_BUILTIN", 12)


@pytest.fixture
def config(tmp_path):
    """A configuration for TEXTS in a file."""
    return DataConfig(source=str(write(tmp_path / "stories.txt")), cache_dir=str(tmp_path / "cache"))


def write(path, texts=TEXTS):
    path.write_text("\n<|endoftext|>\n".join(texts), encoding="utf-8")
    return path


def decoded(corpus, split):
    return [corpus.tokenizer.decode(story) for story in np.split(split.tokens, split.offsets[1:-1])]


def content(folder):
    """Every file of a prepared corpus, apart from what is remembered of this machine."""
    files = {path.name: path for path in folder.iterdir() if path.is_file()}
    return {name: files[name].read_bytes() for name in files.keys() - {CHECKED, "lock"}}


def is_held_out(text, fraction=0.1):
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest()[:8]) / 2**64 < fraction


def flip_a_bit(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize("vocabulary", ["gpt2", "compact"])
def test_a_split_is_its_stories_in_order_each_ended(config, small_pieces, vocabulary):
    """A story lost between two pieces, on the wrong side, or joined to its neighbour."""
    corpus = prepare(DataConfig(config.source, vocabulary, cache_dir=config.cache_dir), workers=1)
    for split, side in ((corpus.train, False), (corpus.validation, True)):
        expected = [text for text in TEXTS if is_held_out(text) == side]
        assert decoded(corpus, split) == expected
        assert split.n_bytes == sum(len(text.encode()) for text in expected)
        assert split.entropy is None
        ends = np.flatnonzero(split.tokens == corpus.tokenizer.end_of_text) + 1
        np.testing.assert_array_equal(ends, split.offsets[1:])
        assert split.offsets[0] == 0 and split.n_stories == len(expected)
    np.testing.assert_array_equal(
        corpus.counts, np.bincount(corpus.train.tokens, minlength=corpus.tokenizer.vocab_size)
    )
    assert corpus.train.tokens.dtype == np.uint16 and corpus.train.offsets.dtype == np.int64
    assert set(content(corpus.folder)) == {*corpus.manifest["files"], "manifest.json"}


def test_the_number_of_workers_changes_nothing(config, small_pieces):
    """Stories in the order in which processes happen to finish."""
    alone = prepare(config, workers=1)
    before = content(alone.folder)
    together = prepare(config, workers=3, rebuild=True)
    assert content(together.folder) == before


def test_a_prepared_corpus_is_opened_and_not_prepared_again(config, monkeypatch, capsys):
    """Minutes of work at every start."""
    first = prepare(config)
    monkeypatch.setattr(corpus_module, "build", None)
    again = prepare(config)
    assert again.fingerprint == first.fingerprint
    assert [line.split(" in ")[0] for line in capsys.readouterr().err.splitlines()][::2] == [
        f"preparing the stories of {config.source}"
    ]


def test_another_source_is_another_corpus_and_the_same_stories_have_the_same_fingerprint(config, tmp_path):
    """Training on what a file held last week; a run that cannot be resumed because its file was moved."""
    first = prepare(config)
    moved = write(tmp_path / "moved.txt")
    assert prepare(DataConfig(str(moved), cache_dir=config.cache_dir)).fingerprint == first.fingerprint
    write(Path(config.source), TEXTS[1:])
    assert prepare(config).folder != first.folder
    assert prepare(config).fingerprint != first.fingerprint


def test_builtin_stories_know_their_entropy(tmp_path, small_pieces):
    """The floor of the loss belonging to other stories than those of the split."""
    corpus = prepare(DataConfig("builtin", builtin_stories=100, cache_dir=str(tmp_path)), workers=1)
    told = list(grammar.write_stories(100, stories.BUILTIN_SEED))
    for split, side in ((corpus.train, False), (corpus.validation, True)):
        kept = [(text, log_p) for text, log_p in told if is_held_out(text) == side]
        assert decoded(corpus, split) == [text for text, _ in kept]
        assert split.entropy == pytest.approx(-sum(log_p for _, log_p in kept))


def test_duplicates_are_counted_and_dropped_on_request(tmp_path):
    """Copies trained on twice as often; the held-out one of two copies dropped, and the other trained on; files of
    validation stories trained on, or held out without a word."""
    folder, cache = tmp_path / "data", str(tmp_path / "cache")
    folder.mkdir()
    write(folder / "train.txt", ["A.", "B.", "A.", "V.", "C.", "B."])
    write(folder / "valid.txt", ["V.", "W.", "W."])
    corpus = prepare(DataConfig(str(folder), cache_dir=cache))
    assert corpus.manifest["stories"]["duplicates"] == 4
    assert decoded(corpus, corpus.train) == ["A.", "B.", "A.", "V.", "C.", "B."]
    assert decoded(corpus, corpus.validation) == ["V.", "W.", "W."]
    assert corpus.manifest["held_out_by"] == "the names of the files"
    corpus = prepare(DataConfig(str(folder), drop_duplicates=True, cache_dir=cache))
    assert corpus.manifest["stories"]["duplicates"] == 4
    assert decoded(corpus, corpus.train) == ["A.", "B.", "C."]
    assert decoded(corpus, corpus.validation) == ["V.", "W."]


def test_copies_are_on_the_same_side(tmp_path):
    """A training story that is also a held-out one."""
    corpus = prepare(DataConfig(str(write(tmp_path / "s.txt", TEXTS * 2)), cache_dir=str(tmp_path)))
    assert not set(decoded(corpus, corpus.train)) & set(decoded(corpus, corpus.validation))


def test_misread_quotes_are_repaired_on_request_only(tmp_path):
    """â€œ learned as a word; or a text changed that was right."""
    wrong = ["He said â€œhiâ€\x9d.", "Itâ€™s late.", "A café.", "Plain."]
    path = write(tmp_path / "s.txt", wrong)
    right = ["He said “hi”.", "It’s late.", "A café.", "Plain."]
    for fix, expected in ((False, wrong), (True, right)):
        config = DataConfig(str(path), fix_encoding=fix, validation_fraction=0.5, cache_dir=str(tmp_path))
        corpus = prepare(config)
        assert sorted(decoded(corpus, corpus.train) + decoded(corpus, corpus.validation)) == sorted(expected)
    assert corpus.manifest["stories"]["repaired"] == 2


def test_the_compact_vocabulary_comes_from_the_training_stories(tmp_path):
    """Held-out words deciding what the model can say; a share of spelled tokens that is made up."""
    folder, cache = tmp_path / "data", str(tmp_path / "cache")
    folder.mkdir()
    write(folder / "train.txt", ["the cat the cat the dog"])
    write(folder / "valid.txt", ["the elephant"])
    corpus = prepare(DataConfig(str(folder), "compact", cache_dir=cache))
    assert corpus.tokenizer.vocab_size == 256 + 4 + 1  # the, Ġthe, Ġcat, Ġdog
    assert decoded(corpus, corpus.validation) == ["the elephant"]
    assert corpus.manifest["tokenizer"]["spelled_in_bytes"] == 0
    corpus = prepare(DataConfig(str(folder), "compact", max_vocab=2, cache_dir=cache))
    assert corpus.tokenizer.vocab_size == 256 + 2 + 1
    assert corpus.manifest["tokenizer"]["spelled_in_bytes"] == pytest.approx(2 / 6)
    assert decoded(corpus, corpus.train) == ["the cat the cat the dog"]


def test_frequent_words_are_counted_in_any_case_and_spelled_in_their_commonest_way(tmp_path):
    """Words of several tokens left out; `the` and `The` as two words; what is no word in a picture of words."""
    write(tmp_path / "train.txt", ["The Zanzibarians don’t run.", "the Zanzibarians run", "the 7 x_y " + "z" * 51])
    write(tmp_path / "valid.txt", ["held out"])
    words = frequent_words(prepare(DataConfig(str(tmp_path), "compact", cache_dir=str(tmp_path / "cache"))))
    assert words == {"the": 3, "Zanzibarians": 2, "run": 2, "don’t": 1, "x": 1, "y": 1}
    assert next(iter(words)) == "the"


def test_what_was_skipped_is_in_the_manifest(tmp_path):
    """Skipped records that nobody can find again."""
    path = tmp_path / "s.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\nbroken\n" for text in TEXTS[:30]) + '{"text": ""}\n')
    with pytest.raises(UserError, match="line 2: not JSON"):
        prepare(DataConfig(str(path), cache_dir=str(tmp_path)))
    manifest = prepare(DataConfig(str(path), skip_bad=True, cache_dir=str(tmp_path))).manifest
    assert manifest["stories"] == {"read": 30, "duplicates": 0, "repaired": 0, "empty": 1, "bad": 30}
    assert len(manifest["bad_records"]) == 30 and "line 60" in manifest["bad_records"][-1]


def test_evaluation_takes_all_stories_in_the_models_vocabulary(config, tmp_path):
    """Nine tenths of somebody's file left out of their evaluation; ids of another vocabulary."""
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.txt", TEXTS[:50])
    write(folder / "valid.txt", TEXTS[50:60])
    own = prepare(DataConfig(str(folder), "compact", cache_dir=config.cache_dir))
    whole = prepare(config, tokenizer=own.tokenizer, held_out_only=True)
    assert decoded(whole, whole.validation) == TEXTS
    assert whole.train.n_stories == 0 and whole.tokenizer.fingerprint == own.tokenizer.fingerprint
    held_out = prepare(DataConfig(str(folder), cache_dir=config.cache_dir), tokenizer=gpt2(), held_out_only=True)
    assert decoded(held_out, held_out.validation) == TEXTS[50:60]
    assert held_out.manifest["stories"]["read"] == 10


def test_a_given_vocabulary_takes_the_place_of_their_own(config, tmp_path):
    """For fine-tuning: the same stories on the same sides, in tokens of another corpus."""
    folder = tmp_path / "others"
    folder.mkdir()
    write(folder / "train.txt", ["The cat sat.", "The dog sat."])
    write(folder / "valid.txt", ["The cat ran."])
    given = prepare(DataConfig(str(folder), "compact", cache_dir=config.cache_dir)).tokenizer
    own, corpus = prepare(config), prepare(config, tokenizer=given)
    assert corpus.tokenizer.fingerprint == given.fingerprint
    for split, same in ((corpus.train, own.train), (corpus.validation, own.validation)):
        assert decoded(corpus, split) == decoded(own, same)
    gpt2_ids = own.train.tokens[own.train.tokens != own.tokenizer.end_of_text]
    spelled = corpus.manifest["tokenizer"]["spelled_in_bytes"]
    assert spelled == pytest.approx(1 - np.isin(gpt2_ids, given.kept).mean()) and 0.2 < spelled < 1
    evaluated = prepare(config, tokenizer=given, held_out_only=True)
    assert len({own.folder, corpus.folder, evaluated.folder}) == 3
    assert prepare(config, tokenizer=gpt2()).folder == own.folder


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([], "holds no stories"),
        (["One."], "1 story, of which 0 are held out by the hash of each story"),
        (["One."] * 500, "its 500 stories are all the same, so that none can be held out"),
    ],
)
def test_too_few_stories(tmp_path, texts, message):
    """An empty split that fails long after, in the middle of training; advice to give more of the same story."""
    with pytest.raises(UserError, match=message):
        prepare(DataConfig(str(write(tmp_path / "s.txt", texts)), cache_dir=str(tmp_path / "cache")))


@pytest.mark.parametrize("count", [2, 5, 40])
def test_of_few_stories_one_is_held_out(tmp_path, count):
    """A file of a dozen stories that cannot be trained on; the copy of a held-out story that is learned."""
    texts = [f"Story {number}." for number in range(count)]
    source = str(write(tmp_path / "s.txt", [*texts, *texts]))
    corpus = prepare(DataConfig(source, validation_fraction=1e-6, cache_dir=str(tmp_path / "cache")))
    held_out, learned = decoded(corpus, corpus.validation), decoded(corpus, corpus.train)
    assert len(held_out) == 2 and len(set(held_out)) == 1
    assert sorted({*held_out, *learned}) == sorted(texts) and not set(held_out) & set(learned)


@pytest.mark.parametrize("name", ["train.tokens", "validation.offsets", "tokenizer.json", "counts", "manifest.json"])
def test_a_truncated_or_missing_file_is_refused_by_name_and_rebuilt_on_request(config, name):
    """Training on half a corpus after a copy that was broken off."""
    corpus = prepare(config)
    before, path = content(corpus.folder), corpus.folder / name
    for damage in (lambda: os.truncate(path, path.stat().st_size // 2), path.unlink):
        damage()
        if name == "manifest.json" and not path.exists():
            continue  # not a prepared corpus: prepared again without a word
        with pytest.raises(UserError) as caught:
            prepare(config)
        assert str(path) in str(caught.value) and "--rebuild" in str(caught.value)
        assert content(prepare(config, rebuild=True).folder) == before


def test_checksums_are_compared_once_and_again_for_what_has_changed(config, monkeypatch):
    """A gigabyte read at every start; a file that was changed and trusted because it was once right."""
    folder = prepare(config).folder
    read = []
    real = hashlib.file_digest
    monkeypatch.setattr(
        hashlib, "file_digest", lambda file, kind: read.append(Path(file.name).name) or real(file, kind)
    )
    prepare(config)
    assert len(read) == 6, "files of this second may still change without a trace"
    monkeypatch.setattr(integrity, "_TICK_NS", -1)
    prepare(config)
    read.clear()
    prepare(config)
    assert not read
    prepare(config, verify=True)
    assert len(read) == 6
    read.clear()
    path = folder / "train.tokens"
    moment = path.stat()
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(moment.st_atime_ns, moment.st_mtime_ns))  # as rsync and tar do
    prepare(config)
    assert "train.tokens" in read
    flip_a_bit(path)
    os.utime(path, ns=(moment.st_atime_ns, moment.st_mtime_ns))
    with pytest.raises(UserError, match=r"train\.tokens does not have the content"):
        prepare(config)


@pytest.mark.parametrize("content", [b"", b"\xff"])
def test_a_damaged_memory_of_checks_is_no_memory(config, monkeypatch, content):
    """A file that nobody needs and that stops everything."""
    monkeypatch.setattr(integrity, "_TICK_NS", -1)
    folder = prepare(config).folder
    (folder / CHECKED).write_bytes(content)
    flip_a_bit(folder / "counts")
    with pytest.raises(UserError, match="counts does not have the content"):
        prepare(config)


def test_tokens_that_are_not_in_the_vocabulary(config):
    """A stranger's corpus whose checksums are right and whose tokens are none."""
    folder = prepare(config).folder
    tokens = folder / "train.tokens"
    tokens.write_bytes(b"\xff" * tokens.stat().st_size)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["train.tokens"]["sha256"] = hashlib.sha256(tokens.read_bytes()).hexdigest()
    manifest["sha256"] = own_checksum(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=r"train\.tokens does not belong to tokenizer\.json"):
        prepare(config)


class Crash(BaseException):
    """The end of the process, as far as a test in the same process can have it."""


def test_a_crash_at_any_write_is_made_good(config, small_pieces, monkeypatch):
    """A half-written file under its final name, or one that the second start trusts although it is stale."""
    write(Path(config.source), TEXTS[:90])
    expected = content(prepare(config, workers=1).folder)
    pieces = len(list(stories.cut(stories.find_source(config.source, 10), False, stories.LeftOut(), lambda _: None)))
    real, crashes = os.fsync, 0
    for survives in range(100):
        shutil.rmtree(config.cache_dir)
        count = iter(range(survives))

        def fsync(file, count=count):
            if next(count, None) is None:
                raise Crash
            real(file)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            # A killed process does not clean up.
            patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
            with contextlib.suppress(Crash):
                prepare(config, workers=1)
                break
            crashes += 1
        finished = list(Path(config.cache_dir).glob("*/shards/*.npz"))
        assert len(finished) == min(survives, pieces)
        for leftover in Path(config.cache_dir).rglob("*.partial"):  # of a process with another number
            leftover.rename(leftover.with_name("train.tokens.0.partial"))
        assert content(prepare(config, workers=1).folder) == expected
    assert crashes == pieces + len(expected)


RUN = """
import sys
from tinygpt_jax.config import DataConfig
from tinygpt_jax.data import corpus, stories
stories.PIECE_CHARACTERS = 20_000
corpus.prepare(DataConfig(sys.argv[1], "compact", cache_dir=sys.argv[2]), workers=2)
print("jax" in sys.modules)
"""


def start(config, cache_dir):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, config.source, str(cache_dir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_at_random_moments_it_goes_on_and_ends_with_the_same_bytes(config, tmp_path):
    """Work lost or mixed up by SIGKILL; processes left behind; jax loaded into every one of them."""
    write(Path(config.source), TEXTS * 10)
    whole = start(config, tmp_path / "whole")
    assert whole.communicate(timeout=60)[0] == "False\n"
    expected = content(next((tmp_path / "whole").iterdir()))
    seconds = random.Random(0)
    for _ in range(3):
        process = start(config, tmp_path / "killed")
        while process.poll() is None and not list((tmp_path / "killed").glob("*/shards/*.npz")):
            time.sleep(0.01)
        time.sleep(seconds.uniform(0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    finished = {path: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("*/shards/*.npz")}
    process = start(config, tmp_path / "killed")
    while process.poll() is None:
        for path, written in finished.items():
            with contextlib.suppress(FileNotFoundError):
                assert path.stat().st_mtime_ns == written, "a finished shard was made again"
        time.sleep(0.02)
    process.communicate()
    assert process.returncode == 0
    assert content(next((tmp_path / "killed").iterdir())) == expected


def test_two_processes_at_once(config, tmp_path):
    """Two trainings started together that write into each other's files."""
    write(Path(config.source), TEXTS * 10)
    both = [start(config, tmp_path / "both") for _ in range(2)]
    messages = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    assert sum("waiting for another process" in message for message in messages) == 1
    assert sum("preparing" in message for message in messages) == 1


def test_two_processes_at_once_of_stories_that_make_no_corpus(config, tmp_path):
    """The second dying of the lock that the first removed with its folder."""
    write(Path(config.source), [TEXTS[0]] * 5_000)
    both = [start(config, tmp_path / "both") for _ in range(2)]
    messages = [process.communicate(timeout=120)[1] for process in both]
    assert sum("waiting for another process" in message for message in messages) == 1
    lines = {message.splitlines()[-1] for message in messages}
    assert len(lines) == 1 and "stories are all the same" in lines.pop(), messages
    assert not list((tmp_path / "both").iterdir())


def test_a_full_disk_is_one_line_and_leaves_the_finished_shards(config, small_pieces, monkeypatch):
    """A traceback, and an hour of work thrown away."""
    real, count = os.fsync, iter(range(5))

    def fsync(file):
        if next(count, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(UserError, match="No space left on device; make room") as caught:
            prepare(config, workers=1)
    assert "\n" not in str(caught.value)
    assert len(list(Path(config.cache_dir).glob("*/shards/*"))) == 5


def test_a_cache_folder_that_cannot_be_written_to(config, tmp_path):
    """A traceback for a typing mistake in --cache-dir."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file and no folder; move it.*--cache-dir or TINYGPT_CACHE"):
        prepare(DataConfig(config.source, cache_dir=str(tmp_path / "file" / "cache")))


def test_a_damaged_shard_is_made_again(config, small_pieces):
    """A shard trusted for its name alone, or although a bit of it is wrong."""
    corpus = prepare(config, workers=1)
    expected, folder = content(corpus.folder), corpus.folder
    piece = next(stories.cut(stories.find_source(config.source, 10), False, stories.LeftOut(), lambda amount: None))
    path = folder / "shards" / "000000.npz"
    for damage in (lambda: path.write_bytes(b"PK nothing"), lambda: flip_a_bit(path)):
        (folder / "manifest.json").unlink()
        (folder / "shards").mkdir()
        shards.write_shard(piece, path, fix_encoding=False)
        damage()
        assert content(prepare(config, workers=1).folder) == expected


def test_a_shard_with_a_flipped_bit_is_damaged_or_the_same(tmp_path):
    """A traceback from a header that is none, or other tokens than were written."""
    path = tmp_path / "000000.npz"
    shards.write_shard(stories.Piece(None, TEXTS[:2]), path, fix_encoding=False)
    tokens, table, whole = shards.read_array(path, "tokens"), shards.read_table([path]), path.read_bytes()
    chosen = random.Random(0).sample(range(8 * len(whole)), 400)
    for bit in chosen:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        if shards.is_whole(path):
            found = [shards.read_array(path, "tokens"), *shards.read_table([path])]
            for a, b in zip(found, [tokens, *table], strict=True):
                np.testing.assert_array_equal(a, b)


def test_shards_that_a_kill_left_beside_a_finished_corpus_are_removed(config):
    """Twice the disk for ever, because the process was killed while it tidied up."""
    folder = prepare(config).folder
    (folder / "shards").mkdir()
    (folder / "shards" / "000000.npz").write_bytes(b"")
    assert not (prepare(config).folder / "shards").exists()


def test_a_killed_worker_is_one_line(tmp_path):
    """Waiting for ever for a process that the system killed for its memory."""

    def pieces():
        for number in range(9):
            if number == 3:  # both processes have started, and one has finished a piece
                for process in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split():
                    os.kill(int(process), signal.SIGKILL)
            yield stories.Piece(None, TEXTS)

    with pytest.raises(UnfinishedError, match="a tokenising process was killed"):
        shards.write_shards(pieces(), tmp_path, fix_encoding=False, workers=2)
    assert 1 <= len(list(tmp_path.iterdir())) < 9


def test_what_is_finished_stays_when_work_is_interrupted_and_goes_when_the_stories_are_at_fault(
    config, small_pieces, monkeypatch
):
    """Hours of a download thrown away with the error of a moment; half a corpus of a file that is none."""
    real, count = shards.write_shard, iter(range(5))
    error = UnfinishedError

    def write_shard(*arguments):
        if next(count, None) is None:
            raise error("it stopped")
        real(*arguments)

    monkeypatch.setattr(shards, "write_shard", write_shard)
    with pytest.raises(UnfinishedError):
        prepare(config, workers=1)
    assert len(list(Path(config.cache_dir).glob("*/shards/*"))) == 5
    error = UserError
    with pytest.raises(UserError):
        prepare(config, workers=1)
    assert not list(Path(config.cache_dir).iterdir())


def test_a_source_that_changes_while_it_is_read(config, monkeypatch):
    """Half of the old file and half of the new one, kept for ever as a corpus."""
    real = shards.write_shard

    def write_shard(*arguments):
        real(*arguments)
        write(Path(config.source), TEXTS[:100])

    monkeypatch.setattr(shards, "write_shard", write_shard)
    with pytest.raises(UserError, match="was changed while it was read"):
        prepare(config)
