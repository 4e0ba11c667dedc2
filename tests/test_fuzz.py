"""Whatever stands in a file or a flag, a parser gives a valid result or one line of UserError, never anything else.

A small seeded set runs with the suite; `TINYGPT_FUZZ_CASES=10000 python -m pytest tests/test_fuzz.py` tries as many of
each, with new seeds every time.
"""

import gzip
import io
import json
import os
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinygpt_jax import tokenizer
from tinygpt_jax.config import Config, ModelConfig
from tinygpt_jax.data import corpus as corpus_module
from tinygpt_jax.data import grammar, stories, story_files
from tinygpt_jax.data.corpus import Corpus, DataConfig, prepare
from tinygpt_jax.data.story_files import BadRecord
from tinygpt_jax.errors import UserError
from tinygpt_jax.exchange import native, tensors
from tinygpt_jax.files import own_checksum
from tinygpt_jax.generation import encode_prompt
from tinygpt_jax.runs.checkpoint_files import Checkpoint, Progress
from tinygpt_jax.runs.folder import Mark, mark_of
from tinygpt_jax.runs.record import read_record
from tinygpt_jax.tokenizer import Tokenizer

CASES = int(os.environ.get("TINYGPT_FUZZ_CASES", "0"))
fuzz = settings(
    max_examples=CASES or 60,
    derandomize=not CASES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

NUMBERS = st.integers() | st.floats() | st.sampled_from([0, -1, 2**31, 2**63, 10**400, 1e308, 5e-324, 0.5, 1])
SCALARS = st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.sampled_from(["\0", "\ud800", "../x", "~x"])
JSON = st.recursive(SCALARS, lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=8), x, max_size=4))


@st.composite
def mutated(draw, document):
    """A JSON document with some of its values replaced, removed or added to."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 3))):
        place = document
        while isinstance(place, dict | list) and place:
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
            if not isinstance(place[key], dict | list) or not place[key] or draw(st.integers(0, 2)) == 0:
                change = draw(st.integers(0, 9))
                if change == 0:
                    del place[key]
                elif change == 1 and isinstance(place, dict):
                    place[draw(st.text(max_size=8))] = draw(JSON)
                else:
                    place[key] = draw(JSON)
                break
            place = place[key]
    return document


@st.composite
def damaged(draw, content):
    """Bytes with some of them changed, cut out, put in or repeated, or with the end missing."""
    content = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(content)))
        size = draw(st.integers(0, 9))
        new = draw(st.binary(max_size=6) | st.sampled_from([b'"', b"\n", b"{", b"[[", b"\0", b"\xff", b"1e999"]))
        content[at : at + size] = new
    return bytes(content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content)


def accepted(parse, *arguments):
    """The result, or None where there was a UserError, which must be one line."""
    try:
        return parse(*arguments)
    except UserError as error:
        assert "\n" not in str(error) and len(str(error)) < 2000
        return None


@fuzz
@given(st.text() | JSON.map(json.dumps) | mutated(json.loads(Config().to_json())).map(json.dumps))
def test_configurations(text):
    config = accepted(Config.from_json, text)
    if config is not None:
        assert Config.from_json(config.to_json()) == config


WORDS = tokenizer.compact(np.bincount([300, 400, 500], minlength=50_257))


@fuzz
@given(st.text() | JSON.map(json.dumps) | mutated(json.loads(WORDS.to_json())).map(json.dumps))
def test_vocabularies(text):
    vocabulary = accepted(Tokenizer.from_json, text)
    if vocabulary is not None:
        assert Tokenizer.from_json(vocabulary.to_json()).fingerprint == vocabulary.fingerprint
        assert vocabulary.decode(vocabulary.encode("Ça va?")) == "Ça va?"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint's folder with all but arrays."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints" / "00000007"
    folder.mkdir(parents=True)
    config = Config(ModelConfig(vocab_size=WORDS.vocab_size))
    progress = Progress(7, "corpus", 1.5, ((2.5, 0.5),), {"metrics.jsonl": Mark(3, "abc")})
    (folder / "config.json").write_text(config.to_json())
    (folder / "tokenizer.json").write_text(WORDS.to_json())
    (folder / "progress.json").write_text(progress.to_json())
    return Checkpoint(folder)


def manifest(checkpoint):
    names = ("config.json", "tokenizer.json", "progress.json")
    return signed({"format_version": 1, "files": {name: mark_of(checkpoint.folder / name) for name in names}})


def signed(document):
    """With a checksum that is right: a stranger can make one."""
    is_object = isinstance(document, dict)
    return document | {"sha256": own_checksum(document)} if is_object else document


@fuzz
@given(st.data())
def test_checkpoint_manifests(checkpoint, data):
    document = manifest(checkpoint)
    raw = json.dumps(document).encode()
    forged = mutated(document).map(lambda x: json.dumps(signed(x)).encode())
    content = data.draw(st.binary() | damaged(raw) | mutated(document).map(lambda x: json.dumps(x).encode()) | forged)
    (checkpoint.folder / "manifest.json").write_bytes(content)
    assert accepted(lambda: checkpoint.problem() and None) is None
    assert checkpoint.validation_loss in (1.5, float("inf"))


@fuzz
@given(st.data())
def test_progress_of_a_checkpoint(checkpoint, data):
    """With a manifest that agrees."""
    path = checkpoint.folder / "progress.json"
    whole = path.read_bytes()
    document = json.loads(whole)
    path.write_bytes(data.draw(damaged(whole) | mutated(document).map(lambda x: json.dumps(x).encode())))
    try:
        (checkpoint.folder / "manifest.json").write_text(json.dumps(manifest(checkpoint)))
        progress = accepted(checkpoint.progress)
        if progress is not None:
            assert Progress.from_json(progress.to_json()).files == progress.files
        assert checkpoint.validation_loss <= float("inf")
    finally:
        path.write_bytes(whole)


TEXTS = [text for text, _ in grammar.write_stories(40, seed=1)]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "stories.txt").write_text("\n<|endoftext|>\n".join(TEXTS))
    return prepare(DataConfig(str(folder / "stories.txt"), "compact", cache_dir=str(folder / "cache")), workers=1)


@fuzz
@given(st.data())
def test_corpus_manifests(prepared, data):
    """As they are damaged by accident, and as a stranger writes them, with a checksum that is right."""
    path = prepared.folder / "manifest.json"
    document = data.draw(mutated(prepared.manifest))
    if isinstance(document, dict) and data.draw(st.booleans()):
        document["sha256"] = own_checksum(document)
    whole = path.read_bytes()
    path.write_bytes(data.draw(st.just(json.dumps(document).encode()) | damaged(whole)))
    try:
        corpus = accepted(corpus_module._open, prepared.folder, False)
        if corpus is not None:
            assert isinstance(corpus, Corpus) and corpus.fingerprint == prepared.fingerprint
    finally:
        path.write_bytes(whole)


def parquet_bytes():
    buffer = io.BytesIO()
    pq.write_table(pa.table({"text": TEXTS[:3]}), buffer)
    return buffer.getvalue()


TXT = "\n<|endoftext|>\n".join(TEXTS[:3]).encode()
FILES = {
    "a.txt": TXT,
    "a.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in TEXTS[:3]).encode(),
    "a.csv": b"id,text\n" + b"".join(f'{i},"{text}"\n'.encode() for i, text in enumerate(TEXTS[:3])),
    "a.txt.gz": gzip.compress(TXT, mtime=0),
    "a.txt.zst": zstandard.compress(TXT),
    "a.parquet": parquet_bytes(),
}


@pytest.mark.parametrize("name", FILES)
def test_story_files(tmp_path, name):
    path = tmp_path / name

    @fuzz
    @given(st.binary() | damaged(FILES[name]))
    def test(content):
        path.write_bytes(content)
        for item in accepted(lambda: list(story_files.read_file(path, lambda _: None))) or ():
            assert isinstance(item, str | BadRecord)
            if isinstance(item, str):
                item.encode()  # no half characters

    test()


@fuzz
@given(st.text() | st.sampled_from(["~nobody", "\0", "x" * 5000, "a/b/c", "\ud800"]))
def test_names_of_sources(text):
    source = accepted(stories.find_source, f"{text}/nowhere.txt", 10)
    assert source is None


@fuzz
@given(st.text(st.characters(codec=None)) | st.text("a b\xa0\n") | st.text(max_size=5).map(lambda x: x * 1000))
def test_prompts(text):
    """Any text, lone surrogates included, becomes at most a window of tokens that spell its end."""
    expected = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for vocabulary in (WORDS, tokenizer.gpt2()):
        tokens, dropped = encode_prompt(vocabulary, text, 16)
        assert len(tokens) <= 16 and all(0 <= token < vocabulary.vocab_size for token in tokens)
        spelled = vocabulary.decode(tokens)
        assert expected.endswith(spelled.lstrip("\ufffd")) if dropped else spelled == expected


TINY = ModelConfig(vocab_size=257, context_length=4, n_layers=1, n_heads=1, d_model=2, d_ff=2)
SHAPES = tensors.parameter_shapes(TINY)


@fuzz
@given(st.data())
def test_safetensors(tmp_path_factory, data):
    """Headers that lie about names, shapes, dtypes and places, and bytes that are no header."""
    header, end = {}, 0
    for name, shape in SHAPES.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [end, end + size]}
        end += size
    if data.draw(st.booleans()):
        header = data.draw(mutated(header))
    raw = json.dumps(header).encode()
    length = data.draw(st.just(len(raw)) | st.integers(0, 2**64 - 1)) if data.draw(st.booleans()) else len(raw)
    whole = struct.pack("<Q", length) + raw + np.zeros(end, np.uint8).tobytes()
    path = tmp_path_factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(data.draw(st.just(whole) | damaged(whole)))
    params = accepted(native.read_parameters, path, TINY)
    if params is not None:
        assert {name: x.shape for name, x in tensors.named(params).items()} == SHAPES


@fuzz
@given(st.data())
def test_run_folders(tmp_path_factory, data):
    """What a report reads."""
    folder = tmp_path_factory.getbasetemp() / "fuzzed run"
    folder.mkdir(exist_ok=True)
    line = {"step": 1, "loss": 2.0, "validation_loss": 2.0, "epoch": 0.1, "prompt": "a", "text": "b", "seconds": 1.0}
    corpus = {"vocab_size": 9, "words": {"a": 3}, "length_histogram": {"edges": [1, 2, 3], "counts": [1, 2]}}
    valid = {
        "config.json": Config().to_json().encode(),
        "corpus.json": json.dumps(corpus).encode(),
        **{f"{name}.jsonl": json.dumps(line).encode() + b"\n" for name in ("metrics", "timings", "samples")},
    }
    name = data.draw(st.sampled_from(sorted(valid)))
    changed = mutated(json.loads(valid[name])).map(lambda x: json.dumps(x).encode() + b"\n")
    for other, content in valid.items():
        (folder / other).write_bytes(data.draw(damaged(content) | changed) if other == name else content)
    accepted(read_record, folder)
