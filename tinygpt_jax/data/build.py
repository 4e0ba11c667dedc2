"""Builds the files of a corpus: source -> shards (`shards`) -> the files that `corpus` describes."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt_jax.data.shards import StoryTable, read_array, read_table, write_shards
from tinygpt_jax.data.stories import HASH_SPLIT, LeftOut, Source, counted, cut
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import own_checksum, sha256_of, whole_file
from tinygpt_jax.tokenizer import GPT2_END_OF_TEXT, GPT2_VOCAB_SIZE, Tokenizer, compact, gpt2

# Where a story goes.
TRAIN, VALIDATION, NOWHERE = 0, 1, 2
EVERYTHING = 1.0  # the `validation_fraction` of a corpus that serves evaluation only
SPLITS = {"train": TRAIN, "validation": VALIDATION}
FILES = ("train.tokens", "train.offsets", "validation.tokens", "validation.offsets", "counts", "tokenizer.json")


def build(folder: Path, source: Source, key: dict[str, Any], tokenizer: Tokenizer | None, workers: int) -> None:
    """Make every file of the corpus in `folder`, the manifest last. Shards that are there already are used.

    Args:
        folder: of this corpus only.
        source: the stories.
        key: the head of the manifest; `key["options"]` are the options.
        tokenizer: the vocabulary; None: that of the options.
        workers: processes that tokenise.

    Raises:
        OSError: a file cannot be written.
        UserError: the source cannot be read, or has too few stories.
    """
    from tqdm import tqdm

    options = key["options"]
    held_out_only = options["validation_fraction"] == EVERYTHING
    (folder / "shards").mkdir(exist_ok=True)
    for leftover in folder.rglob("*.partial"):
        leftover.unlink()
    print(f"preparing the stories of {source.name} in {folder}", file=sys.stderr, flush=True)
    left_out, start = LeftOut(), time.monotonic()
    with tqdm(total=source.total, unit=source.unit, unit_scale=True, leave=False, disable=None) as bar:
        pieces = cut(source, options["skip_bad"], left_out, bar.update, held_out_only)
        shards = write_shards(pieces, folder / "shards", options["fix_encoding"], workers)
    seconds = time.monotonic() - start
    if source.fingerprint != key["source"]:
        raise UserError(f"{source.name} was changed while it was read: run again when it is complete")
    if not shards:
        raise UserError(f"{source.name} holds no stories: it is empty, or has blank lines only")
    stories = read_table(shards)
    speed = f"{stories.n_bytes.sum() / 1e6 / seconds:.1f} MB/s, {seconds:.0f} s"
    print(f"{counted(len(stories.n_bytes))}, {speed}", file=sys.stderr, flush=True)
    is_copy = _copies(stories.digests)
    sides = _sides(stories, is_copy, options)
    _check(source, sides, is_copy, options, needs_training=not held_out_only)
    tokenizer, spelled = _vocabulary(shards, sides, options, tokenizer)
    _write_files(folder, shards, sides, tokenizer)
    manifest = {
        **key,
        "name": source.name,
        "held_out_by": source.own_split or HASH_SPLIT,
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "spelled_in_bytes": spelled},
        "stories": {
            "read": len(sides),
            "duplicates": int(is_copy.sum()),
            "repaired": int(stories.repaired.sum()),
            "empty": left_out.empty,
            "bad": left_out.bad,
        },
        "bad_records": left_out.first_bad,
        **{name: _totals(stories, sides == side) for name, side in SPLITS.items()},
        "files": {
            name: {"bytes": (folder / name).stat().st_size, "sha256": sha256_of(folder / name)} for name in FILES
        },
    }
    manifest["sha256"] = own_checksum(manifest)
    with whole_file(folder / "manifest.json") as file:
        file.write((json.dumps(manifest, indent=1) + "\n").encode())


def _copies(digests: np.ndarray) -> np.ndarray:
    """Which stories are copies of an earlier one. (This takes some 70 bytes of memory for each story.)"""
    is_copy = np.zeros(len(digests), bool)
    # Equal digests become neighbours, the earliest first: lexsort is stable.
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    is_copy[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    return is_copy


def _sides(stories: StoryTable, is_copy: np.ndarray, options: dict[str, Any]) -> np.ndarray:
    """Where each story goes.

    Where the source does not say it: the hash of a story's text, read as a number in [0, 1), is below
    `validation_fraction` for held-out stories, so a story and its copies are on the same side. Of so few that there is
    none, the lowest is held out.
    """
    place = stories.digests[:, 0] / 2.0**64
    by_hash = (place < options["validation_fraction"]) | (place == place.min()) & (place.min() < place.max())
    sides = np.where(stories.held_out >= 0, stories.held_out, by_hash)
    return np.where(is_copy & options["drop_duplicates"], NOWHERE, sides)


def _check(
    source: Source, sides: np.ndarray, is_copy: np.ndarray, options: dict[str, Any], needs_training: bool
) -> None:
    """Raise UserError if a split that is needed would be empty."""
    validation = int((sides == VALIDATION).sum())
    if validation and (not needs_training or (sides == TRAIN).any()):
        return
    different = len(sides) - int(is_copy.sum())
    if different == 1 < len(sides) and not source.own_split:
        raise UserError(
            f"{source.name}: its {len(sides):,} stories are all the same, so that none can be held out from training: "
            "give different ones"
        )
    by = source.own_split or f"{HASH_SPLIT} (--validation-fraction {options['validation_fraction']:g})"
    alike = f", {different:,} different" if different < len(sides) else ""
    raise UserError(
        f"{source.name}: {counted(len(sides))}{alike}, of which {validation:,} are held out by {by}; "
        "some must be, and some not: give more stories (in a .txt file, <|endoftext|> or a blank line is between them)"
    )


def _vocabulary(
    shards: list[Path], sides: np.ndarray, options: dict[str, Any], given: Tokenizer | None
) -> tuple[Tokenizer, float]:
    """The vocabulary that is given or that the options ask for, and the share of GPT-2's tokens it spells in bytes.

    The tokens are those of the training stories, or of all where there are none for training.
    """
    if options["vocabulary"] == "gpt2":
        return gpt2(), 0.0
    counts = np.zeros(GPT2_VOCAB_SIZE, np.int64)
    counted_side = VALIDATION if options["validation_fraction"] == EVERYTHING else TRAIN
    for tokens, lengths, side in _by_shard(shards, sides):
        counts += np.bincount(tokens[np.repeat(side == counted_side, lengths)], minlength=GPT2_VOCAB_SIZE)
    counts[GPT2_END_OF_TEXT] = 0
    tokenizer = given or compact(counts, options["max_vocab"])
    return tokenizer, 1 - float(counts[tokenizer.kept].sum() / max(1, counts.sum()))


def _write_files(folder: Path, shards: list[Path], sides: np.ndarray, tokenizer: Tokenizer) -> None:
    """Write all files but the manifest."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    ends = dict.fromkeys(SPLITS, 0)
    with contextlib.ExitStack() as stack:
        files = {name: stack.enter_context(whole_file(folder / name)) for name in FILES}
        for split in SPLITS:
            files[f"{split}.offsets"].write(np.zeros(1, "<i8").tobytes())
        for tokens, lengths, side in _by_shard(shards, sides):
            for split, value in SPLITS.items():
                chosen = side == value
                ids, new_lengths = tokenizer.remap(tokens[np.repeat(chosen, lengths)], lengths[chosen])
                files[f"{split}.tokens"].write(ids.astype("<u2", copy=False).tobytes())
                offsets = ends[split] + np.cumsum(new_lengths)
                files[f"{split}.offsets"].write(offsets.astype("<i8", copy=False).tobytes())
                ends[split] += len(ids)
                if value == TRAIN:
                    counts += np.bincount(ids, minlength=tokenizer.vocab_size)
        files["counts"].write(counts.astype("<i8", copy=False).tobytes())
        files["tokenizer.json"].write(tokenizer.to_json().encode())


def _by_shard(shards: list[Path], sides: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Of each shard the tokens, and of its stories the lengths and where they go."""
    first = 0
    for path in shards:
        tokens, lengths = read_array(path, "tokens"), read_array(path, "lengths")
        yield tokens, lengths, sides[first : first + len(lengths)]
        first += len(lengths)


def _totals(stories: StoryTable, chosen: np.ndarray) -> dict[str, Any]:
    entropy = -float(stories.log_p[chosen].sum())
    return {
        "stories": int(chosen.sum()),
        "bytes": int(stories.n_bytes[chosen].sum()),
        "entropy": None if math.isnan(entropy) else entropy,
    }
