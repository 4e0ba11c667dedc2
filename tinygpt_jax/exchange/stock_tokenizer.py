"""Our vocabularies as Hugging Face's `tokenizers` library reads them, and a stranger's recognised as one of ours.

GPT-2's whole vocabulary is its own BPE. A compact one is no BPE: it spells a token that it lacks in single bytes, and a
BPE cannot take a merge back. So it is written as GPT-2's BPE with its tokens numbered as here, and those that it lacks
numbered from `vocab_size` on; a word that is one such token is split into its bytes before. What is left, a word of
several tokens of which one is lacking, gets a number that the model has no row for. So every text gets our ids, or one
that a model refuses: never other ids in silence.
"""

import functools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt_jax.errors import UserError
from tinygpt_jax.files import read_text
from tinygpt_jax.tokenizer import GPT2_END_OF_TEXT, GPT2_VOCAB_SIZE, Tokenizer, gpt2, gpt2_merges

END = "<|endoftext|>"
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The file `tokenizer.json`. A text is begun with end-of-text, as every story in training was."""
    number = _numbers(tokenizer)
    lacking = [name for name, i in zip(_names(), number, strict=True) if i >= tokenizer.vocab_size]
    splits: dict[str, Any] = _BYTES
    if lacking:
        pattern = rf"\A(?!(?:{_any_of(lacking)})\z).+|."  # a word that is no such token is left whole
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        splits = {"type": "Sequence", "pretokenizers": [_BYTES, split]}
    end = tokenizer.end_of_text
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    text, marker = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": END, "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    document = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": end, "content": END, **flags, "special": True}],
        "normalizer": None,
        "pre_tokenizer": splits,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [marker, text],
            "pair": [marker, text, marker, second],
            "special_tokens": {END: {"id": END, "ids": [end], "tokens": [END]}},
        },
        "decoder": _BYTES,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": {**dict(zip(_names(), number, strict=True)), END: end},
            "merges": [merge.split(" ") for merge in gpt2_merges()],
        },
    }
    return json.dumps(document, ensure_ascii=False)


def tokenizer_config(tokenizer: Tokenizer, context_length: int) -> dict[str, Any]:
    """The file `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
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
        document = json.loads(read_text(path))
        if path.name == "tokenizer.json":
            vocab, merges = document["model"]["vocab"], document["model"]["merges"]
            vocab |= {token["content"]: token["id"] for token in document.get("added_tokens") or []}
        else:
            vocab, merges = document, read_text(folder / "merges.txt").strip().split("\n")[1:]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in merges]
        kept = sorted(gpt2_id for gpt2_id, name in enumerate([*_names(), END]) if 0 <= vocab[name] < vocab_size)
        found = gpt2() if len(kept) == GPT2_VOCAB_SIZE else _compact(kept)
        numbers = dict(zip(_names(), _numbers(found), strict=True))
        if merges != gpt2_merges() or vocab != {**numbers, END: found.end_of_text} or found.vocab_size != vocab_size:
            raise ValueError(f"its tokens or merges are others, or not {vocab_size:,}")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else error
        raise UserError(f"{path} is not GPT-2's tokenizer, nor cut from it, which this program needs: {why}") from None
    return found


def _compact(kept: list[int]) -> Tokenizer:
    try:
        return Tokenizer.from_json(json.dumps({"tokenizer": "compact", "kept": kept}))
    except UserError as error:
        raise ValueError(str(error)) from None


@functools.cache
def _names() -> list[str]:
    """GPT-2's tokens but for end-of-text, in its letters for bytes."""
    order = gpt2().decode_bytes(range(256))
    letters = [chr(byte) if i < 188 else chr(0x100 + i - 188) for i, byte in enumerate(order)]
    return letters + [merge.replace(" ", "") for merge in gpt2_merges()]


def _numbers(tokenizer: Tokenizer) -> list[int]:
    """The number of each of `_names`: its id, or for those that are lacking the numbers from `vocab_size` on."""
    numbers = np.full(GPT2_VOCAB_SIZE, -1)
    numbers[tokenizer.kept] = np.arange(tokenizer.vocab_size)
    lacking = numbers < 0
    numbers[lacking] = tokenizer.vocab_size + np.arange(np.count_nonzero(lacking))
    return numbers[:GPT2_END_OF_TEXT].tolist()


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
    if not node:
        return ""
    ways = [re.escape(letter) + _branches(below) for letter, below in node.items() if letter]
    optional = "?" if "" in node and ways else ""
    return (ways[0] if len(ways) == 1 and not optional else f"(?:{'|'.join(ways)})") + optional if ways else ""
