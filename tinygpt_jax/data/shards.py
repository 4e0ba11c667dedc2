"""Pieces of stories, tokenised by all cores into one file each: a shard.

A shard is complete once it has its name, so a preparation that was killed goes on behind the last one. Its
content depends on its piece only, and so not on how many processes work. It is a `.npz` file of GPT-2's tokens of the
stories, uint16, each story followed by end-of-text, and of the columns of `StoryTable`.
"""

import contextlib
import hashlib
import itertools
import os
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np

from tinygpt_jax.data import grammar
from tinygpt_jax.data.stories import BUILTIN_SEED, Piece
from tinygpt_jax.errors import UnfinishedError, UserError
from tinygpt_jax.files import whole_file
from tinygpt_jax.tokenizer import GPT2_END_OF_TEXT, gpt2


class StoryTable(NamedTuple):
    """What is known of stories one by one, `[stories]`, without their tokens."""

    lengths: np.ndarray  # int64: tokens, with the end-of-text
    n_bytes: np.ndarray  # int64: in UTF-8
    digests: np.ndarray  # uint64 [stories, 2]: BLAKE2b-128 of the text
    log_p: np.ndarray  # float64: log-probability in nats of built-in stories; of others NaN
    held_out: np.ndarray  # int8: 1 or 0 where the source has its own validation split; else -1
    repaired: np.ndarray  # bool: whether its encoding was repaired


def write_shards(pieces: Iterator[Piece], folder: Path, fix_encoding: bool, workers: int) -> list[Path]:
    """Make the shards that are not there yet, with `workers` processes, and return all of them in order.

    Pieces are read as they are needed, so there is about one piece for each process in memory.

    Args:
        pieces: what to tokenise.
        folder: where shards are kept. The caller has removed those of any other source.
        fix_encoding: repair mis-decoded text first.
        workers: processes; with 1, or a single piece, the work is done in this one.

    Raises:
        OSError: a shard cannot be written.
        UserError: what reading the pieces raises.
        UnfinishedError: a process was killed.
    """
    paths: list[Path] = []

    def unfinished() -> Iterator[tuple[Piece, Path]]:
        for number, piece in enumerate(pieces):
            paths.append(folder / f"{number:06}.npz")
            if not is_whole(paths[-1]):
                yield piece, paths[-1]

    jobs = unfinished()
    first = list(itertools.islice(jobs, 2))
    jobs = itertools.chain(first, jobs)
    if workers == 1 or len(first) < 2:
        for piece, path in jobs:
            write_shard(piece, path, fix_encoding)
    else:
        _write_in_processes(jobs, fix_encoding, workers)
    return paths


def write_shard(piece: Piece, path: Path, fix_encoding: bool) -> None:
    """Tokenise one piece."""
    texts, log_p, repaired = _texts(piece, fix_encoding)
    ids, lengths = gpt2().encode_batch(texts)
    lengths = lengths + 1
    tokens = np.full(lengths.sum(), GPT2_END_OF_TEXT, np.uint16)
    is_text = np.ones(len(tokens), bool)
    is_text[np.cumsum(lengths) - 1] = False
    tokens[is_text] = ids
    encoded = [text.encode() for text in texts]
    digests = b"".join(hashlib.blake2b(text, digest_size=16).digest() for text in encoded)
    table = StoryTable(
        lengths=lengths,
        n_bytes=np.fromiter(map(len, encoded), np.int64, len(encoded)),
        digests=np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2),
        log_p=log_p,
        held_out=np.full(len(texts), -1 if piece.held_out is None else piece.held_out, np.int8),
        repaired=repaired,
    )
    with whole_file(path) as file:
        np.savez(file, tokens=tokens, **table._asdict())


def read_table(paths: list[Path]) -> StoryTable:
    """What is known of the stories of some shards, one shard after another."""
    return StoryTable(*(np.concatenate([read_array(path, name) for path in paths]) for name in StoryTable._fields))


def read_array(path: Path, name: str) -> np.ndarray:
    """A shard's `tokens`, or a column of its table."""
    with np.load(path, allow_pickle=False) as shard:
        return shard[name]


def is_whole(path: Path) -> bool:
    """Whether a shard is there with all its arrays, and its checksums are right."""
    expected = {f"{name}.npy" for name in ("tokens", *StoryTable._fields)}
    try:
        with zipfile.ZipFile(path) as file:
            return set(file.namelist()) == expected and file.testzip() is None
    # What zipfile and zlib say of a header that is none, of a method or flag that it would have, of a cut end.
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, ValueError):
        return False


def _texts(piece: Piece, fix_encoding: bool) -> tuple[list[str], np.ndarray, np.ndarray]:
    """The texts of a piece, their log-probabilities, and which of them were repaired."""
    unknown, sound = np.full(len(piece.stories), np.nan), np.zeros(len(piece.stories), bool)
    if isinstance(piece.stories, range):
        texts, log_p = zip(*grammar.write_stories(len(piece.stories), BUILTIN_SEED, piece.stories.start), strict=True)
        return list(texts), np.array(log_p), sound
    if not fix_encoding:
        return piece.stories, unknown, sound
    import ftfy

    fixed = [text if text.isascii() else ftfy.fix_encoding(text) for text in piece.stories]
    return fixed, unknown, np.array([a != b for a, b in zip(fixed, piece.stories, strict=True)])


def _write_in_processes(jobs: Iterator[tuple[Piece, Path]], fix_encoding: bool, workers: int) -> None:
    """Each process has one piece at a time; the next one is read meanwhile."""
    processes: list[subprocess.Popen] = []
    busy: list[Connection] = []

    def next_done() -> Connection:
        connection = cast(Connection, wait(busy)[0])
        busy.remove(connection)
        if error := connection.recv():
            raise error
        return connection

    try:
        for piece, path in jobs:
            connection = next_done() if len(busy) == workers else _start_process(processes)
            busy.append(connection)
            connection.send((piece, path, fix_encoding))
        while busy:
            next_done()
    except (EOFError, ConnectionError):
        raise UnfinishedError(
            "a tokenising process was killed (was memory short?): run again to go on from the finished part, with "
            "fewer --workers if it was"
        ) from None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _start_process(processes: list[subprocess.Popen]) -> Connection:
    """A connection to a new Python that runs `serve`, and ends when the connection does: when we end in whatever way.

    Not a process of `multiprocessing`: that would import the caller's main module again, with jax and perhaps without
    a guard, and would wait for ever for a parent that was killed.
    """
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", f"from tinygpt_jax.data.shards import serve; serve({theirs.fileno()})"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            pass_fds=[theirs.fileno()],
            start_new_session=True,  # Ctrl-C goes to us, and we end them
        )
    processes.append(process)
    return ours


def serve(descriptor: int) -> None:
    """Write the shards that are asked for on this connection, until it ends."""
    with Connection(descriptor) as questions, contextlib.suppress(EOFError, OSError):
        while True:
            arguments, error = questions.recv(), None
            try:
                write_shard(*arguments)
            except (OSError, UserError) as problem:
                error = problem
            questions.send(error)
