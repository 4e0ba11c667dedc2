"""Text to token ids and back: GPT-2's byte-pair encoding without a network, and a compact vocabulary cut from it.

GPT-2 (Radford et al. 2019) splits a text into pieces by a regular expression and merges each piece's bytes by a
table of 50,000 merges. tiktoken does this work; the table is shipped beside this file (see NOTICE). The compact
vocabulary keeps only the tokens a corpus uses and spells every other token in single-byte tokens, so a small
model has a small embedding and still reads and writes any text.
"""

import functools
import gzip
import hashlib
import itertools
import json
import re
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from tinygpt_jax.errors import UserError

GPT2_VOCAB_SIZE = 50_257
GPT2_END_OF_TEXT = 50_256
_MERGES = Path(__file__).with_name("gpt2_merges.txt.gz")


@dataclass(frozen=True, eq=False)
class Tokenizer:
    """A vocabulary: all of GPT-2's tokens or some of them, numbered in GPT-2's order. Made by `gpt2` or `compact`.

    The first 256 ids are always the single bytes and the last is always end-of-text. A lone surrogate, which is
    not text and has no UTF-8 form, is encoded as U+FFFD.
    """

    name: Literal["gpt2", "compact"]
    kept: np.ndarray  # [vocab_size] GPT-2's id of each token, ascending

    def __post_init__(self) -> None:
        self.kept.setflags(write=False)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return self.kept.size

    @property
    def end_of_text(self) -> int:
        """Id of the token that stands between stories. No text encodes to it."""
        return self.vocab_size - 1

    def encode(self, text: str) -> list[int]:
        """Token ids of any text. The characters `<|endoftext|>` are text like any other."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """All texts' token ids one after another, uint16, and the number of ids of each text, int64 `[len(texts)]`.

        Runs on one core, nearly twice as fast as calling tiktoken for each text.
        """
        encoded = [_encode_gpt2(text) for text in texts]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded)) // np.dtype(np.uint16).itemsize
        return self.remap(np.frombuffer(bytearray().join(encoded), np.uint16), lengths)

    def remap(self, gpt2_ids: np.ndarray, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Translate what GPT-2's `encode_batch` returned (with or without end-of-text) into this vocabulary.

        So a corpus is encoded once, and counted, before its compact vocabulary is known. Needs about 40 bytes of
        working memory per token.
        """
        if self.name == "gpt2":
            return gpt2_ids, lengths
        spelled, starts, widths = self._spelling
        width = widths[gpt2_ids]
        if width.max(initial=1) == 1:  # the usual case needs a third of the time
            return spelled[starts[gpt2_ids]], lengths
        ends = np.concatenate(([0], np.cumsum(width, dtype=np.int64)))
        # Result j belongs to token i with ends[i] <= j < ends[i + 1] and is entry j - ends[i] of its spelling.
        shift = np.repeat(starts[gpt2_ids] - ends[:-1], width)
        text_ends = ends[np.concatenate(([0], np.cumsum(lengths)))]
        return spelled[np.arange(ends[-1]) + shift], np.diff(text_ends)

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """UTF-8 bytes of tokens, which may stop inside a character; end-of-text is empty.

        Raises:
            ValueError: an id is not in the vocabulary.
        """
        ids = np.asarray(ids, np.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(f"token ids {ids.min()} to {ids.max()}: must be from 0 to {self.vocab_size - 1}")
        return b"".join(map(self._tokens.__getitem__, ids.tolist()))

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of tokens; bytes that are not UTF-8, such as half a character, become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """The vocabulary as one line, at most 0.3 MB."""
        kept = {} if self.name == "gpt2" else {"kept": self.kept.tolist()}
        return json.dumps({"tokenizer": self.name, **kept}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "Tokenizer":
        """Read `to_json`'s form, trusting nothing in it.

        Raises:
            UserError: the text is anything else. Whoever read it knows where from, and what to do.
        """
        try:
            if len(text) > 1_000_000:
                raise ValueError(f"{len(text)} characters, more than any vocabulary needs")
            document = json.loads(text)
            if document == {"tokenizer": "gpt2"}:
                return gpt2()
            kept = document.get("kept") if isinstance(document, dict) else None
            if document != {"tokenizer": "compact", "kept": kept} or not isinstance(kept, list):
                raise ValueError("not the form of a gpt2 or compact vocabulary")
            ascends = all(type(i) is int for i in kept) and kept == sorted(set(kept))
            if not ascends or kept[:256] != [*range(256)] or kept[-1] != GPT2_END_OF_TEXT:
                raise ValueError(f"kept does not ascend from the bytes, 0 to 255, to end-of-text, {GPT2_END_OF_TEXT}")
            return cls("compact", np.array(kept))
        except (ValueError, RecursionError) as error:
            raise UserError(f"this is no vocabulary of GPT-2's tokens: {error}") from None

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of `to_json`: equal for equal vocabularies only."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @functools.cached_property
    def _tokens(self) -> list[bytes]:
        return [_gpt2_tokens()[i] for i in self.kept]

    @functools.cached_property
    def _spelling(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How GPT-2 token i is written here: `spelled[starts[i] : starts[i] + widths[i]]`."""
        tokens = _gpt2_tokens()
        is_kept = np.isin(np.arange(GPT2_VOCAB_SIZE), self.kept)
        widths = np.where(is_kept, 1, [len(token) for token in tokens])
        starts = np.cumsum(widths) - widths
        letters = b"".join(b"?" if keep else token for token, keep in zip(tokens, is_kept, strict=True))
        id_of_byte = np.argsort(np.frombuffer(b"".join(tokens[:256]), np.uint8)).astype(np.uint16)
        spelled = id_of_byte[np.frombuffer(letters, np.uint8)]
        spelled[starts[self.kept]] = np.arange(self.vocab_size)
        return spelled, starts, widths.astype(np.uint8)


@functools.cache
def gpt2() -> Tokenizer:
    """GPT-2's 50,257 tokens.

    Raises:
        UserError: the merge table in the package is missing or damaged.
    """
    _gpt2_encoding()  # so that a damaged installation is found before any work is done
    return Tokenizer("gpt2", np.arange(GPT2_VOCAB_SIZE))


def compact(counts: np.ndarray, max_vocab: int | None = None) -> Tokenizer:
    """The tokens that occur, the 256 single bytes and end-of-text.

    Args:
        counts: how often each GPT-2 token occurs, `[50257]`.
        max_vocab: keep only this many of the tokens that occur, the most frequent (of equals the lowest ids);
            bytes and end-of-text come on top.
    """
    by_frequency = np.argsort(-counts[:GPT2_END_OF_TEXT].astype(np.int64), kind="stable")
    occurring = np.count_nonzero(counts[:GPT2_END_OF_TEXT])
    return Tokenizer("compact", np.union1d([*range(256), GPT2_END_OF_TEXT], by_frequency[:occurring][:max_vocab]))


def _encode_gpt2(text: str) -> bytes:
    """GPT-2's token ids of a text, as the bytes of a uint16 array.

    A text without U+00A0 may be cut before every space and its parts encoded alone. In GPT-2's pattern a space
    begins a piece or is among other whitespace, nothing looks back, and only tokens that contain U+00A0 hold a
    space after their first byte. So a text is encoded word by word, and most words have been met before.
    """
    if "\xa0" in text:
        return _encode_whole(text)
    words = text.split(" ")
    first = words.pop(0)
    return _encode_whole(first) + b"".join(map(_words.__getitem__, words))


class _Words(dict[str, bytes]):
    """The encoding of " " + word; a word is encoded when it is first looked up."""

    LONGEST, MOST = 32, 2**17  # characters of a word and words to remember, for a bound of about 30 MB

    def __missing__(self, word: str) -> bytes:
        encoded = _encode_whole(" " + word)
        if len(word) <= self.LONGEST:
            if len(self) >= self.MOST:
                self.clear()
            self[word] = encoded
        return encoded


_words = _Words()


def _encode_whole(text: str) -> bytes:
    encode = _gpt2_encoding().encode_ordinary
    if len(text) < 500_000:
        return array("H", encode(text)).tobytes()
    # tiktoken panics where a million characters of whitespace precede a word. A text may also be cut before the
    # last whitespace of a run, so long runs are cut there.
    return array("H", itertools.chain.from_iterable(map(encode, _LONG_RUN.split(text)))).tobytes()


# What \s means in GPT-2's pattern. Python's \s has U+001C to U+001F besides, which are symbols there.
_WHITESPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_LONG_RUN = re.compile(rf"(?={_WHITESPACE}\S)(?<=\s{{1000}})")


@functools.cache
def _gpt2_encoding() -> tiktoken.Encoding:
    ranks = {token: rank for rank, token in enumerate(_gpt2_tokens()[:GPT2_END_OF_TEXT])}
    return tiktoken.Encoding("gpt2", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={})


@functools.cache
def _gpt2_tokens() -> list[bytes]:
    """Bytes of each of GPT-2's tokens: single bytes, then the merges in order, then end-of-text (empty).

    The table writes bytes as letters: a printable Latin-1 character for itself, the n-th other byte as U+0100 + n.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    byte_of_letter = {0x100 + n: byte for n, byte in enumerate(others)}
    merged = [merge.replace(" ", "").translate(byte_of_letter).encode("latin-1") for merge in gpt2_merges()]
    return [bytes([byte]) for byte in printable + others] + merged + [b""]


def gpt2_merges() -> list[str]:
    """GPT-2's merges in order, as its table writes them: two tokens and a space between, with letters for bytes."""
    return _read_merges().split("\n")[1:-1]


def _read_merges(path: Path = _MERGES) -> str:
    """OpenAI's `vocab.bpe`: a version line, then one merge a line as two tokens."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read GPT-2's merge table {path} ({error.strerror}): reinstall tinygpt_jax") from None
    if hashlib.sha256(content).hexdigest() != "fba0a805da1768c3a5402988986ee8e47f5254c0d873895678a8df164bb94f39":
        raise UserError(f"GPT-2's merge table {path} is damaged: reinstall tinygpt_jax")
    return gzip.decompress(content).decode()
