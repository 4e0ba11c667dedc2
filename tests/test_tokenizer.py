import gzip
import hashlib
import itertools
import json
import pickle
from base64 import b64encode

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext.openai_public import r50k_pat_str

from tinygpt_jax import tokenizer
from tinygpt_jax.errors import UserError
from tinygpt_jax.tokenizer import Tokenizer, compact, gpt2

END_OF_TEXT = 50_256
patient = settings(deadline=None)  # a busy machine is no failure
STORY = 'Once upon a time, there was a dog named Spot. He said,\n\n"I\'ll find 12 red balls!" \nThe end.'
# The kinds of character that GPT-2's pattern tells apart, and the neighbours that Python's \s and isspace confuse.
PIECES = [" ", "\n", "\t", "\xa0", "\u2028", "\x85", "\x1c", "\u200b", "a", "é", "中", "1", "!", "'s", "'", "🙂"]
# Words and whitespace in every mixture, and any character at all, surrogates too.
TEXTS = st.lists(st.sampled_from([*PIECES, " the", "  ", "'ll", "\ud83d", "<|endoftext|>"]) | st.text(max_size=3)).map(
    "".join
)


@pytest.fixture(scope="module")
def tiktoken_gpt2() -> tiktoken.Encoding:
    ranks = {gpt2().decode_bytes([i]): i for i in range(END_OF_TEXT)}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    """A compact vocabulary of one story's tokens, which spells nearly everything else."""
    return compact(counts_of(STORY))


def counts_of(*texts: str) -> np.ndarray:
    return np.bincount(gpt2().encode_batch(texts)[0], minlength=50_257)


def spell(vocabulary: Tokenizer, gpt2_ids: list[int]) -> list[int]:
    """GPT-2 ids in a compact vocabulary, by its definition and one at a time."""
    new_id = {int(old): new for new, old in enumerate(vocabulary.kept)}
    byte_id = {gpt2().decode_bytes([i]): i for i in range(256)}
    ids = []
    for old in gpt2_ids:
        ids += [new_id[old]] if old in new_id else [byte_id[bytes([b])] for b in gpt2().decode_bytes([old])]
    return ids


# --- GPT-2's encoding


def test_table_is_r50k_base():
    """The table's letters decoded wrongly, or ranks out of order: the hash is that of OpenAI's r50k_base.tiktoken."""
    lines = (b"%s %d\n" % (b64encode(gpt2().decode_bytes([i])), i) for i in range(END_OF_TEXT))
    assert (
        hashlib.sha256(b"".join(lines)).hexdigest()
        == "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
    )


def test_only_tokens_with_no_break_space_hold_a_later_space():
    """What cutting a text before every space relies on, for all tokens: none but those reaches over a cut."""
    tokens = [gpt2().decode_bytes([i]) for i in range(END_OF_TEXT)]
    assert all("\xa0".encode() in token for token in tokens if b" " in token[1:])


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("Once upon a time", [7454, 2402, 257, 640]),
        ("hello world", [31373, 995]),
        ("<|endoftext|>", [27, 91, 437, 1659, 5239, 91, 29]),  # in a text it is no special token
        ("", []),
    ],
)
def test_known_ids(text, ids):
    """Another vocabulary or pattern, and a text that smuggles in the special token."""
    assert gpt2().encode(text) == ids


def test_batch_equals_tiktoken_on_all_short_texts(tiktoken_gpt2):
    """A wrong claim about where a text may be cut: every text of up to four kinds of piece, and six of the crucial."""
    crucial = [" ", "\n", "\xa0", "a", "!"]
    texts = ["".join(t) for n in range(5) for t in itertools.product(PIECES, repeat=n)]
    texts += ["".join(t) for t in itertools.product(crucial, repeat=6)]
    expected = [tiktoken_gpt2.encode_ordinary(text) for text in texts]
    ids, lengths = gpt2().encode_batch(texts)
    assert ids.dtype == np.uint16 and lengths.dtype == np.int64
    assert lengths.tolist() == [len(e) for e in expected]
    assert ids.tolist() == list(itertools.chain.from_iterable(expected))


@patient
@given(st.lists(TEXTS, max_size=4))
def test_batch_equals_tiktoken_on_any_text(tiktoken_gpt2, texts):
    """The word-by-word path differing from tiktoken on any text, or lengths that belong to other texts."""
    ids, lengths = gpt2().encode_batch(texts)
    parts = np.split(ids, np.cumsum(lengths))[:-1]
    assert [part.tolist() for part in parts] == [tiktoken_gpt2.encode_ordinary(text) for text in texts]


@pytest.mark.parametrize("space", [" ", "\n", "\xa0"])
def test_very_long_whitespace(space, tiktoken_gpt2):
    """tiktoken panics on a million of whitespace and a word; below that the result must be its own."""
    text = f"a b{space * 600_000}\x1cc d"
    assert gpt2().encode(text) == tiktoken_gpt2.encode_ordinary(text)
    text = f"a b{space * 1_200_000}c d"
    assert gpt2().decode(gpt2().encode(text)) == text


def test_remembered_words_are_bounded(monkeypatch, tiktoken_gpt2):
    """A corpus of ever new or endless words filling the memory, or the forgetting losing a word."""
    monkeypatch.setattr(tokenizer, "_words", tokenizer._Words())
    monkeypatch.setattr(tokenizer._Words, "MOST", 10)
    text = " ".join(f"word{i} " + "x" * i for i in range(1, 100))
    assert gpt2().encode(text) == tiktoken_gpt2.encode_ordinary(text)
    assert 0 < len(tokenizer._words) <= 10
    assert max(map(len, tokenizer._words)) <= tokenizer._Words.LONGEST


# --- both vocabularies


@patient
@given(TEXTS)
def test_round_trip(small, text):
    """A text that does not survive; a lone surrogate, which is not text, becomes U+FFFD as documented."""
    written = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for vocabulary in (gpt2(), small):
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == written
        assert all(0 <= i < vocabulary.end_of_text for i in ids)


@patient
@given(st.binary(max_size=30))
def test_single_bytes_write_anything(small, data):
    """A byte token missing from a vocabulary or numbered otherwise than its spelling assumes."""
    ids = [small._tokens.index(bytes([byte])) for byte in data]
    assert small.decode_bytes(ids) == data


def test_decode_part_of_a_character():
    """Streaming output stops inside a character: no exception, and the bytes are kept by decode_bytes."""
    ids = gpt2().encode("🙂")
    assert len(ids) > 1
    assert gpt2().decode(ids[:-1]) == "\N{REPLACEMENT CHARACTER}"
    assert gpt2().decode_bytes(ids[:-1]) + gpt2().decode_bytes(ids[-1:]) == "🙂".encode()


def test_decode_end_of_text_is_empty(small):
    """The special token printed into a story."""
    for vocabulary in (gpt2(), small):
        assert vocabulary.decode([vocabulary.end_of_text]) == vocabulary.decode([]) == ""


@pytest.mark.parametrize("wrong", [-1, 50_257])
def test_decode_refuses_other_ids(wrong):
    """-1 silently read as the last token, or an IndexError that names nothing."""
    with pytest.raises(ValueError, match=f"{wrong}.*0 to 50256"):
        gpt2().decode([5, wrong])


def test_is_immutable(small):
    """`gpt2()` is shared: whoever changed it would change it for all."""
    with pytest.raises(ValueError):
        gpt2().kept[0] = 1
    with pytest.raises(AttributeError):
        small.name = "gpt2"


# --- the compact vocabulary


def test_compact_keeps_what_occurs():
    """Bytes or end-of-text dropped or doubled, or numbering that is not GPT-2's order."""
    counts = np.zeros(50_257, np.uint32)
    counts[[3, 640, 7454, END_OF_TEXT]] = 1, 2, 9, 100
    assert compact(counts).kept.tolist() == [*range(256), 640, 7454, END_OF_TEXT]
    assert compact(counts).vocab_size == 259 and compact(counts).end_of_text == 258
    assert compact(np.zeros(50_257)).kept.tolist() == [*range(256), END_OF_TEXT]


def test_compact_keeps_the_most_frequent():
    """Ties in an order that depends on the machine, or end-of-text and absent tokens taking places."""
    counts = np.zeros(50_257, np.uint32)
    counts[[300, 400, 500, 600, END_OF_TEXT]] = 5, 7, 5, 5, 100
    assert compact(counts, 3).kept[256:].tolist() == [300, 400, 500, END_OF_TEXT]
    assert compact(counts, 1000).kept[256:].tolist() == [300, 400, 500, 600, END_OF_TEXT]


@patient
@given(st.lists(TEXTS, max_size=4))
def test_remap_equals_definition(small, texts):
    """Spelling shifted by one, lengths of other texts, empty texts; encode and remap must agree."""
    encoded = [gpt2().encode(text) for text in texts]
    expected = [spell(small, ids) for ids in encoded]
    ids, lengths = small.remap(*gpt2().encode_batch(texts))
    assert ids.dtype == np.uint16 and lengths.dtype == np.int64
    assert lengths.tolist() == [len(e) for e in expected]
    assert ids.tolist() == list(itertools.chain.from_iterable(expected))
    assert [small.encode(text) for text in texts] == expected


def test_remap_keeps_end_of_text(small):
    """A stream with end-of-text between the stories loses or spells it."""
    stream = np.array([*gpt2().encode(STORY), END_OF_TEXT, *gpt2().encode("zebra"), END_OF_TEXT], np.uint16)
    ids, lengths = small.remap(stream, np.array([len(stream)]))
    assert small.decode(ids) == STORY + "zebra" and lengths.tolist() == [len(ids)]
    assert np.count_nonzero(ids == small.end_of_text) == 2 and ids[-1] == small.end_of_text


# --- files


def test_saved_and_read_again(small):
    """A checkpoint whose tokenizer numbers tokens otherwise, or two vocabularies with one fingerprint."""
    for vocabulary in (gpt2(), small):
        for copy in (Tokenizer.from_json(vocabulary.to_json()), pickle.loads(pickle.dumps(vocabulary))):
            assert copy.name == vocabulary.name and copy.fingerprint == vocabulary.fingerprint
            assert copy.encode(STORY + "zebra") == vocabulary.encode(STORY + "zebra")
    assert len({v.fingerprint for v in (gpt2(), small, compact(counts_of("zebra")))}) == 3


BYTES = [*range(256)]


@pytest.mark.parametrize(
    "saved",
    [
        "",
        "no json",
        "[" * 100_000,
        "9" * 5_000,
        "[]",
        "null",
        '"gpt2"',
        '{"tokenizer": "gpt2"' + " " * 1_000_000 + "}",
        '{"tokenizer": "gpt2", "kept": []}',
        '{"tokenizer": "bert"}',
        '{"tokenizer": "compact"}',
        '{"tokenizer": ["compact"], "kept": []}',
        '{"tokenizer": "compact", "kept": {"0": 1}}',
        '{"tokenizer": "compact", "kept": []}',
        json.dumps({"tokenizer": "compact", "kept": [*BYTES, END_OF_TEXT], "more": 1}),
        *(
            json.dumps({"tokenizer": "compact", "kept": kept})
            for kept in (
                [*BYTES, "300", END_OF_TEXT],
                [*BYTES, 300.0, END_OF_TEXT],
                [False, True, *BYTES[2:], END_OF_TEXT],
                [*BYTES, None, END_OF_TEXT],
                [*BYTES, 300],  # no end-of-text
                [*BYTES[1:], 300, END_OF_TEXT],  # a byte missing
                [*BYTES, 300, 300, END_OF_TEXT],
                [*BYTES, 400, 300, END_OF_TEXT],
                [*BYTES, 10**9, END_OF_TEXT],
                [*BYTES, -5, END_OF_TEXT],
                [*BYTES, END_OF_TEXT, END_OF_TEXT + 1],
            )
        ),
    ],
    ids=lambda saved: saved[:40] + "..." + saved[-25:],
)
def test_hostile_file_is_refused(saved):
    """A damaged or malicious checkpoint gives one line, and neither a traceback nor a wrong vocabulary."""
    with pytest.raises(UserError) as caught:
        Tokenizer.from_json(saved)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300 and message.startswith("this is no vocabulary")
    assert "corpus" not in message and "checkpoint" not in message  # it may be neither


def damaged_tables():
    whole = tokenizer._MERGES.read_bytes()
    return {
        "missing": None,
        "empty": b"",
        "truncated": whole[:-1000],
        "flipped": whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
        "not gzip": b"#version: 0.2\n",
        "other table": gzip.compress(gzip.decompress(whole).replace(b"\xc4\xa0 t\n", b"\xc4\xa0 x\n", 1)),
        "one more line": gzip.compress(gzip.decompress(whole) + b"a b\n"),
    }


@pytest.mark.parametrize("damage", damaged_tables())
def test_damaged_table_is_refused(damage, tmp_path):
    """A damaged download tokenises a whole corpus wrongly, or ends in a traceback."""
    path = tmp_path / "merges.txt.gz"
    if (content := damaged_tables()[damage]) is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="reinstall tinygpt_jax") as caught:
        tokenizer._read_merges(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
