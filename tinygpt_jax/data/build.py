"""Builds the files of a corpus: source -> shards (`shards`) -> the files that `corpus` describes."""

import contextlib
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from tinygpt_jax.data.shards import ShardInfo, read_info, read_tokens, whole_file, write_shards
from tinygpt_jax.data.stories import LeftOut, Piece, Source, cut
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import own_checksum
from tinygpt_jax.tokenizer import GPT2_END_OF_TEXT, GPT2_VOCAB_SIZE, Tokenizer, compact, gpt2

# Where a story goes.
TRAIN, VALIDATION, NOWHERE = 0, 1, 2
SPLITS = {"train": TRAIN, "validation": VALIDATION}


def build(folder: Path, source: Source, key: dict[str, Any], tokenizer: Tokenizer | None, workers: int) -> None:
    """Make every file of the corpus in `folder`, the manifest last. Shards that are there already are used.

    Args:
        folder: of this corpus only.
        source: the stories.
        key: the head of the manifest; `key["options"]` are the options.
        tokenizer: the vocabulary, for a corpus that serves evaluation only; None: that of the options.
        workers: processes that tokenise.

    Raises:
        OSError: a file cannot be written.
        UserError: the source cannot be read, or has too few stories.
    """
    options = key["options"]
    (folder / "shards").mkdir(exist_ok=True)
    for leftover in folder.rglob("*.partial"):
        leftover.unlink()
    print(f"preparing the stories of {source.name} in {folder}", file=sys.stderr, flush=True)
    left_out = LeftOut()
    with _Progress(source) as progress:
        pieces = cut(source, options["skip_bad"], left_out, progress.advance, held_out_only=tokenizer is not None)
        shards = write_shards(pieces, folder / "shards", options["fix_encoding"], workers, progress.done)
    if source.fingerprint != key["source"]:
        raise UserError(f"{source.name} was changed while it was read: run again when it is complete")
    if not shards:
        raise UserError(f"{source.name} holds no stories: it is empty, or has blank lines only")
    infos = [read_info(path) for path in shards]
    sides, duplicates = _sides(infos, options)
    _check(source.name, sides, options, needs_training=tokenizer is None)
    spelled = None
    if tokenizer is None:
        tokenizer, spelled = _vocabulary(shards, infos, sides, options)
    files = _write_files(folder, shards, infos, sides, tokenizer)
    manifest = {
        **key,
        "name": source.name,
        "has_own_split": source.has_own_split,
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "spelled_in_bytes": spelled},
        "stories": {
            "read": sum(len(info.lengths) for info in infos),
            "duplicates": duplicates,
            "repaired": int(sum(info.repaired for info in infos)),
            "empty": left_out.empty,
            "bad": left_out.bad,
        },
        "bad_records": left_out.first_bad,
        **{name: _totals(infos, sides, side) for name, side in SPLITS.items()},
        "files": files,
    }
    manifest["sha256"] = own_checksum(manifest)
    with whole_file(folder / "manifest.json") as file:
        file.write((json.dumps(manifest, indent=1) + "\n").encode())


def _sides(infos: Sequence[ShardInfo], options: dict[str, Any]) -> tuple[list[np.ndarray], int]:
    """Where each story of each shard goes, and how many stories are copies of an earlier one.

    The hash of a story's text, read as a number in [0, 1), is below `validation_fraction` for held-out stories, so
    a story and its copies are on the same side. (Finding the copies takes some 70 bytes of memory for each story.)
    """
    digests = np.concatenate([info.digests for info in infos])
    is_copy = np.zeros(len(digests), bool)
    # Equal digests become neighbours, the earliest first: lexsort is stable.
    order = np.lexsort((digests[:, 1], digests[:, 0]))
    is_copy[order[1:]] = (digests[order[1:]] == digests[order[:-1]]).all(axis=1)
    sides, starts = [], np.cumsum([len(info.digests) for info in infos])[:-1]
    for info, copies in zip(infos, np.split(is_copy, starts), strict=True):
        if info.held_out >= 0:
            side = np.full(len(info.lengths), info.held_out)
        else:
            side = (info.digests[:, 0] / 2.0**64 < options["validation_fraction"]).astype(np.int8)
        sides.append(np.where(copies, NOWHERE, side) if options["drop_duplicates"] else side)
    return sides, int(is_copy.sum())


def _check(name: str, sides: list[np.ndarray], options: dict[str, Any], needs_training: bool) -> None:
    train, validation = (sum(int((side == split).sum()) for side in sides) for split in SPLITS.values())
    if validation == 0 or (needs_training and train == 0):
        raise UserError(
            f"{name}: {train + validation} stories, of which {validation} fall into the held-out "
            f"{options['validation_fraction']:.0%}: give more stories or another --validation-fraction "
            "(a .txt file has <|endoftext|> or a blank line between stories)"
        )


def _vocabulary(
    shards: list[Path], infos: list[ShardInfo], sides: list[np.ndarray], options: dict[str, Any]
) -> tuple[Tokenizer, float]:
    """The vocabulary that the options ask for, and the share of training tokens that it spells in bytes."""
    if options["vocabulary"] == "gpt2":
        return gpt2(), 0.0
    counts = np.zeros(GPT2_VOCAB_SIZE, np.int64)
    for path, info, side in zip(shards, infos, sides, strict=True):
        ids = read_tokens(path)[np.repeat(side == TRAIN, info.lengths)]
        counts += np.bincount(ids, minlength=GPT2_VOCAB_SIZE)
    counts[GPT2_END_OF_TEXT] = 0
    tokenizer = compact(counts, options["max_vocab"])
    return tokenizer, tokenizer.share_spelled(counts)


def _write_files(
    folder: Path, shards: list[Path], infos: list[ShardInfo], sides: list[np.ndarray], tokenizer: Tokenizer
) -> dict[str, dict[str, Any]]:
    """Write all files but the manifest and return size and checksum of each."""
    counts = np.zeros(tokenizer.vocab_size, np.int64)
    ends = dict.fromkeys(SPLITS, 0)
    with contextlib.ExitStack() as stack:
        names = [f"{split}.{kind}" for split in SPLITS for kind in ("tokens", "offsets")]
        files = {name: _Checked(stack.enter_context(whole_file(folder / name))) for name in names}
        for split in SPLITS:
            files[f"{split}.offsets"].write(np.zeros(1, "<i8"))
        for path, info, side in zip(shards, infos, sides, strict=True):
            tokens = read_tokens(path)
            for split, value in SPLITS.items():
                chosen = side == value
                ids, lengths = tokenizer.remap(tokens[np.repeat(chosen, info.lengths)], info.lengths[chosen])
                files[f"{split}.tokens"].write(ids.astype("<u2", copy=False))
                files[f"{split}.offsets"].write((ends[split] + np.cumsum(lengths)).astype("<i8", copy=False))
                ends[split] += len(ids)
                if value == TRAIN:
                    counts += np.bincount(ids, minlength=tokenizer.vocab_size)
        for name, content in (("counts", counts.astype("<i8")), ("tokenizer.json", tokenizer.to_json().encode())):
            files[name] = _Checked(stack.enter_context(whole_file(folder / name)))
            files[name].write(content)
    return {name: {"bytes": file.size, "sha256": file.sha256.hexdigest()} for name, file in files.items()}


class _Checked:
    """A file to write to that keeps count and checksum."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.size, self.sha256 = file, 0, hashlib.sha256()

    def write(self, content: np.ndarray | bytes) -> None:
        raw = content if isinstance(content, bytes) else content.tobytes()
        self.file.write(raw)
        self.sha256.update(raw)
        self.size += len(raw)


def _totals(infos: list[ShardInfo], sides: list[np.ndarray], split: int) -> dict[str, Any]:
    n_bytes = sum(int(info.n_bytes[side == split].sum()) for info, side in zip(infos, sides, strict=True))
    stories = sum(int((side == split).sum()) for side in sides)
    entropy = None
    if all(len(info.log_p) for info in infos):
        entropy = -sum(float(info.log_p[side == split].sum()) for info, side in zip(infos, sides, strict=True))
    return {"stories": stories, "bytes": n_bytes, "entropy": entropy}


class _Progress:
    """A bar with stories, MB/s and the time left; only the last line where the output is not a terminal."""

    def __init__(self, source: Source) -> None:
        self.source, self.stories, self.characters, self.start = source, 0, 0, time.monotonic()

    def __enter__(self) -> "_Progress":
        from tqdm import tqdm

        total = self.source.total
        form = "{percentage:3.0f}% |{bar}| {postfix}, {remaining} left" if total else "{postfix}, {elapsed}"
        self.bar = tqdm(total=total, bar_format=form, postfix="0 stories", disable=None, leave=False, delay=0.5)
        return self

    def advance(self, amount: int) -> None:
        """More of the source was read."""
        self.bar.update(amount)

    def done(self, piece: Piece) -> None:
        """A piece is tokenised."""
        self.stories += len(piece.stories)
        if not isinstance(piece.stories, range):
            self.characters += sum(map(len, piece.stories))
        self.bar.set_postfix_str(self._text())

    def __exit__(self, kind: object, *_: object) -> None:
        self.bar.close()
        if kind is None:
            print(f"{self._text()}, {time.monotonic() - self.start:.0f} s", file=sys.stderr, flush=True)

    def _text(self) -> str:
        speed = self.characters / 1e6 / (time.monotonic() - self.start)
        return f"{self.stories:,} stories" + (f", {speed:.1f} MB/s" if self.characters else "")
