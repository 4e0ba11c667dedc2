"""A corpus on disk: stories tokenised once, then opened by mapping its files into memory.

One folder for each source, vocabulary and set of options, in the user's cache folder:

    train.tokens       validation.tokens    uint16, little-endian: the stories, each followed by end-of-text
    train.offsets      validation.offsets   int64, little-endian [stories + 1]: where each story starts
    counts                                  int64 [vocab_size]: how often each token occurs in train.tokens
    tokenizer.json                          the vocabulary
    manifest.json                           source, options, counts, size and sha256 of all of the above and of itself
    checked                                 which of the files were compared with their checksums: see `integrity`
    shards/                                 work in progress; there until the manifest is
    lock                                    held by the process that prepares
"""

import hashlib
import json
import os
import re
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt_jax.config import DataConfig
from tinygpt_jax.data.build import EVERYTHING, FILES, SPLITS, build
from tinygpt_jax.data.integrity import check
from tinygpt_jax.data.stories import Source, find_source
from tinygpt_jax.devices import cache_folder
from tinygpt_jax.errors import UnfinishedError, UserError
from tinygpt_jax.files import disk_errors, locked, read_text
from tinygpt_jax.tokenizer import Tokenizer

FORMAT = 3
MOST_WORKERS = 8  # by default: each needs about 110 MB, and one reader keeps no more than that busy
_REMEDY = (
    "make room or give permission there and run the same command again, which goes on from what is finished; or choose "
    "another folder with --cache-dir or TINYGPT_CACHE"
)


@dataclass(frozen=True, eq=False)
class Split:
    """Stories as token ids. Story i is `tokens[offsets[i] : offsets[i + 1]]`, the last of them end-of-text."""

    tokens: np.ndarray = field(repr=False)  # uint16 [all tokens]
    offsets: np.ndarray = field(repr=False)  # int64 [stories + 1]
    n_bytes: int  # of the stories' text in UTF-8
    entropy: float | None  # sum of -log p over the stories in nats, where the exact p is known (builtin)

    @property
    def n_stories(self) -> int:
        """Number of stories."""
        return len(self.offsets) - 1


@dataclass(frozen=True, eq=False)
class Corpus:
    """A prepared corpus."""

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    tokenizer: Tokenizer = field(repr=False)
    train: Split
    validation: Split
    counts: np.ndarray = field(repr=False)  # int64 [vocab_size]: occurrences of each token in train.tokens

    @property
    def fingerprint(self) -> str:
        """sha256 of the content: equal for equal stories in equal order, split and vocabulary, wherever from."""
        checksums = {name: entry["sha256"] for name, entry in self.manifest["files"].items()}
        return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()


def prepare(
    config: DataConfig,
    *,
    tokenizer: Tokenizer | None = None,
    held_out_only: bool = False,
    workers: int | None = None,
    streaming: bool = False,
    rebuild: bool = False,
    verify: bool = False,
) -> Corpus:
    """Open the corpus that `config` describes; build it first where it is not there yet.

    A preparation that was killed goes on from what it had finished. Where another process prepares the same
    corpus, its result is waited for.

    Args:
        config: source, vocabulary and options. (`layout` does not matter here.)
        tokenizer: the vocabulary of a model that there is, in place of the one that `config` asks for.
        held_out_only: all stories are in `validation`, to evaluate a finished model. Of a source with a validation
            split of its own, only that split is read.
        workers: processes that tokenise; by default one for each core, at most MOST_WORKERS.
        streaming: read `tinystories` from the hub without downloading it first. The result is the same.
        rebuild: throw away what is there.
        verify: compare all checksums, also those of files that have not changed since they were last compared.

    Raises:
        UserError: the source cannot be read, the corpus is damaged, or the disk is full.
    """
    source = find_source(config.source, config.builtin_stories, streaming)
    key = _key(source, config, tokenizer, held_out_only)
    cache = cache_folder() if config.cache_dir is None else Path(config.cache_dir).expanduser()
    folder = cache / _folder_name(source, key)
    manifest, shards = folder / "manifest.json", folder / "shards"

    def wait_for(_: str) -> None:
        print(f"waiting for another process that prepares {folder}", file=sys.stderr, flush=True)

    if rebuild or shards.exists() or not manifest.exists():
        with disk_errors(folder, _REMEDY), locked(folder / "lock", wait_for):
            if rebuild:
                manifest.unlink(missing_ok=True)  # without it the rest counts for nothing
                shutil.rmtree(shards, ignore_errors=True)
            if not manifest.exists():
                _build(folder, source, key, tokenizer, workers or default_workers())
            shutil.rmtree(shards, ignore_errors=True)
    return _open(folder, verify)


def default_workers() -> int:
    """One for each core that this process may use, at most MOST_WORKERS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, MOST_WORKERS)


def _build(folder: Path, source: Source, key: dict[str, Any], tokenizer: Tokenizer | None, workers: int) -> None:
    """`build`; of stories that make no corpus nothing stays behind."""
    try:
        build(folder, source, key, tokenizer, workers)
    except UnfinishedError:
        raise
    except UserError:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _key(source: Source, config: DataConfig, tokenizer: Tokenizer | None, held_out_only: bool) -> dict[str, Any]:
    """All that a corpus is made from: the head of its manifest. Equal keys share a folder."""
    names = ("vocabulary", "max_vocab", "validation_fraction", "drop_duplicates", "fix_encoding", "skip_bad")
    options = {name: getattr(config, name) for name in names}
    if tokenizer is not None:
        vocabulary = tokenizer.name if tokenizer.name == "gpt2" else tokenizer.fingerprint
        options |= {"vocabulary": vocabulary, "max_vocab": None}
    if held_out_only:
        options |= {"validation_fraction": EVERYTHING}
    return {"format": FORMAT, "source": source.fingerprint, "options": options}


def _folder_name(source: Source, key: dict[str, Any]) -> str:
    words = re.sub(r"[^a-z0-9]+", "-", Path(source.name).name.lower()).strip("-")
    return f"{words[:40]}-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]}"


def _open(folder: Path, verify: bool) -> Corpus:
    """Map a corpus into memory.

    Raises:
        UserError: a file is missing, or is not what was written.
    """
    try:
        manifest, is_new = check(folder, FILES, verify)
        tokenizer = Tokenizer.from_json(read_text(folder / "tokenizer.json"))
        vocab_size = tokenizer.vocab_size if is_new else None
        train, validation = (_open_split(folder, manifest, name, vocab_size) for name in SPLITS)
        counts = np.fromfile(folder / "counts", "<i8")
        if len(counts) != tokenizer.vocab_size:
            raise UserError(f"{folder / 'counts'} does not belong to tokenizer.json")
        return Corpus(folder, manifest, tokenizer, train, validation, counts)
    except (UserError, OSError) as error:
        what = str(error)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OverflowError, RecursionError):
        what = f"{folder / 'manifest.json'} cannot be read"
    raise UserError(
        f"{what}: this prepared corpus is damaged; build it anew with the same flags and --rebuild (python -m "
        "experiments.prepare)"
    )


def _open_split(folder: Path, manifest: dict[str, Any], name: str, vocab_size: int | None) -> Split:
    """With a vocabulary size, look at every token and offset: a stranger's checksums say nothing of what they mean."""
    tokens, offsets = _map(folder / f"{name}.tokens", "<u2"), _map(folder / f"{name}.offsets", "<i8")
    if offsets[0] != 0 or offsets[-1] != len(tokens) or (vocab_size and (np.diff(offsets) < 1).any()):
        raise UserError(f"{folder / name}.offsets does not belong to {name}.tokens")
    if vocab_size and tokens.max(initial=0) >= vocab_size:
        raise UserError(f"{folder / name}.tokens does not belong to tokenizer.json")
    n_bytes, entropy = manifest[name]["bytes"], manifest[name]["entropy"]
    if type(n_bytes) is not int or not isinstance(entropy, float | None):
        raise TypeError
    return Split(tokens, offsets, n_bytes, entropy)


def _map(path: Path, dtype: str) -> np.ndarray:
    # An empty file cannot be mapped. A plain view of the map, because indexing a memmap itself is slow.
    return np.asarray(np.memmap(path, dtype, "r")) if path.stat().st_size else np.empty(0, dtype)
