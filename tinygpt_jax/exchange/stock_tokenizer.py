"""Our vocabularies as Hugging Face's `tokenizers` library reads them, and a stranger's recognised as one of ours.

GPT-2's whole vocabulary is its own BPE. A compact one is no BPE: it spells a token that it lacks in single bytes, and
what a BPE has merged it cannot take back. So it is written out in steps that the library has: a text is marked at the
bounds of its words, bytes become letters, each of GPT-2's 50,000 merges in its turn is a replacement, and then a token
that is lacking is split. It is slow, as every text is searched 50,000 times, and the offsets mean nothing.

The ids are exact for every text but two kinds. `<|endoftext|>` in a text is the special token there, unless the library
is asked to split those, and is spelled out here. And a compact vocabulary takes U+FDD0, which is no character, as mark.
"""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tinygpt_jax.errors import UserError
from tinygpt_jax.files import read_text
from tinygpt_jax.tokenizer import GPT2_VOCAB_SIZE, Tokenizer, gpt2, gpt2_merges

END = "<|endoftext|>"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
_MARK = "\ufdd0"
# GPT-2's pattern for words, as the places where it cuts: around a contraction where one begins a word ...
_CONTRACTION = r"(?<! |[^\s\p{L}\p{N}])'(?=[sdmt]|ll|ve|re)"
_CUTS = "|".join(
    (
        r"(?<=_'[sdmt]|_'ll|_'ve|_'re)(?=\S)",
        # ... before white space, and within it before its last character, which belongs to the next word if a space ...
        r"(?<=\S)(?=\s)|(?<=\s)(?=\s\S)|(?<=[^\S ])(?=\S)",
        # ... and between letters, numbers and everything else.
        r"(?<=\p{L})(?=[^\s\p{L}_])|(?<=\p{N})(?=[^\s\p{N}_])|(?<=[^\s\p{L}\p{N}_])(?<!_')(?=[\p{L}\p{N}])",
    )
).replace("_", _MARK)


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The file `tokenizer.json`. A text is begun with end-of-text, as every story in training was."""
    end = tokenizer.end_of_text
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first, second = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    begin = {"SpecialToken": {"id": END, "type_id": 0}}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": end, "content": END, **flags, "special": True}],
        **(_bpe() if tokenizer.vocab_size == GPT2_VOCAB_SIZE else _written_out(tokenizer)),
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [begin, first],
            "pair": [begin, first, begin, second],
            "special_tokens": {END: {"id": END, "ids": [end], "tokens": [END]}},
        },
        "decoder": _BYTES,
    }
    return json.dumps(document, ensure_ascii=False)


def _bpe() -> dict[str, Any]:
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
        "vocab": _vocabulary(gpt2()),
        "merges": [merge.split(" ") for merge in gpt2_merges()],
    }
    return {"normalizer": None, "pre_tokenizer": _BYTES, "model": model}


def _written_out(tokenizer: Tokenizer) -> dict[str, Any]:
    kept = set(tokenizer.kept.tolist())
    lacking = [name for gpt2_id, name in enumerate(_names()) if gpt2_id not in kept]
    tokens = {"type": "Split", "pattern": {"Regex": r"[ \n]+"}, "behavior": "Removed", "invert": False}
    letters = {
        "type": "Split",
        "pattern": {"Regex": rf"\A(?!(?:{_any_of(lacking)})\z).+|."},  # the whole of a token, unless it is lacking
        "behavior": "Isolated",
        "invert": False,
    }
    return {
        "normalizer": {"type": "Sequence", "normalizers": _merging()},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [tokens, letters]},
        "model": {"type": "WordLevel", "vocab": _vocabulary(tokenizer), "unk_token": END},  # nothing is unknown
    }


def _merging() -> list[dict[str, Any]]:
    """Steps from a text to GPT-2's tokens: a space after each, a line break between words; no letter is either."""
    mark = "".join(_letters()[byte] for byte in _MARK.encode())
    return [
        _replacement(_CONTRACTION, f"{_MARK}'"),
        _replacement(_CUTS, _MARK),
        {"type": "ByteLevel"},
        _replacement(mark, "\n"),
        _replacement(r"(?<=[^\n])", " "),
        *(_replacement(rf"(?<![^ \n]){re.escape(merge)} ", merge.replace(" ", "") + " ") for merge in gpt2_merges()),
    ]


def _replacement(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"Regex": pattern}, "content": content}


def tokenizer_config(tokenizer: Tokenizer, context_length: int) -> dict[str, Any]:
    """The file `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "pad_token": END,
        "model_max_length": context_length,
        "clean_up_tokenization_spaces": False,
    }


def read_tokenizer(folder: Path, vocab_size: int) -> Tokenizer:
    """Our vocabulary with which a stock model of so many tokens was trained.

    Raises:
        UserError: its tokenizer is not GPT-2's, nor one that was cut from it.
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        path = folder / "vocab.json"
    if not path.exists():
        if vocab_size != GPT2_VOCAB_SIZE:
            raise UserError(f"{folder} has no tokenizer.json, and {vocab_size:,} tokens are not GPT-2's 50,257")
        return gpt2()
    try:
        document: Any = json.loads(read_text(path))
        if path.name == "vocab.json":
            merges = read_text(folder / "merges.txt").strip().split("\n")[1:]
            document = {"model": {"type": "BPE", "vocab": document, "merges": merges}}
        model = document["model"]
        added = {token["content"]: token["id"] for token in document.get("added_tokens") or []}
        vocabulary, kept = {**model["vocab"], **added}, [*_names(), END]
        found = _made_of([gpt2_id for gpt2_id, name in enumerate(kept) if name in vocabulary])
        if vocabulary != _vocabulary(found) or found.vocab_size != vocab_size:
            raise ValueError(f"its tokens are others, or not {vocab_size:,}")
        if model["type"] == "BPE":
            merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
            same = merges == gpt2_merges()
        else:
            same = document["normalizer"]["normalizers"] == _merging()
        if not same:
            raise ValueError("its merges are others")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is not GPT-2's tokenizer, nor cut from it, which this program needs: {why}") from None
    return found


def _made_of(kept: list[int]) -> Tokenizer:
    if len(kept) == GPT2_VOCAB_SIZE:
        return gpt2()
    try:
        return Tokenizer.from_json(json.dumps({"tokenizer": "compact", "kept": kept}))
    except UserError as error:
        raise ValueError(str(error)) from None


def _vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """The id of each token by its name."""
    names = [*_names(), END]
    return {names[gpt2_id]: i for i, gpt2_id in enumerate(tokenizer.kept.tolist())}


@functools.cache
def _names() -> list[str]:
    """GPT-2's tokens but for end-of-text, in its letters for bytes."""
    order = gpt2().decode_bytes(range(256))
    return [_letters()[byte] for byte in order] + [merge.replace(" ", "") for merge in gpt2_merges()]


@functools.cache
def _letters() -> dict[int, str]:
    """The letter of each byte: of the 188 that are printable in Latin-1 their own, for the others U+0100 and on."""
    order = gpt2().decode_bytes(range(256))
    return {byte: chr(byte) if i < 188 else chr(0x100 + i - 188) for i, byte in enumerate(order)}


def _any_of(words: Iterable[str]) -> str:
    """A regular expression for any of the words, which looks at each letter of a text once."""
    tree: dict[str, Any] = {}
    for word in words:
        node = tree
        for letter in word:
            node = node.setdefault(letter, {})
        node[""] = {}
    return _branches(tree)


def _branches(node: dict[str, Any]) -> str:
    ways = [re.escape(letter) + _branches(below) for letter, below in node.items() if letter]
    if not ways:
        return ""
    if "" in node:  # a word may end here
        return f"(?:{'|'.join(ways)})?"
    return ways[0] if len(ways) == 1 else f"(?:{'|'.join(ways)})"
