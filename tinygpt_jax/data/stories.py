"""Where stories come from: the built-in storyteller, TinyStories, or files; cut into pieces to work on in parallel.

A source has a `name` for messages, a `fingerprint` that identifies its stories without reading them, a `total` of a
`unit` that its reading counts up to, and says with `own_split` what in it decides which stories are held out; empty
where nothing does.
"""

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinygpt_jax.data import grammar, hub
from tinygpt_jax.data.story_files import COMPRESSIONS, FORMATS, Advance, BadRecord, format_of, read_file
from tinygpt_jax.errors import UsageError, UserError

BUILTIN_SEED = 0
PIECE_CHARACTERS = 2**22
PIECE_BUILTIN = 2**13
LISTED_BAD_RECORDS = 1000
HASH_SPLIT = "the hash of each story"  # of sources without an own split


@dataclass(frozen=True)
class Piece:
    """Consecutive stories of a source: their texts, or their numbers where they are built in."""

    held_out: bool | None  # None: as the hash of each story decides
    stories: list[str] | range


@dataclass
class LeftOut:
    """What was met in a source and is no story."""

    empty: int = 0
    bad: int = 0
    first_bad: list[str] = field(default_factory=list)


def find_source(source: str, builtin_stories: int, streaming: bool = False) -> "Source":
    """The source that `DataConfig.source` names. `streaming` reads the hub's dataset without downloading it first.

    Raises:
        UsageError: it is neither a known name nor a file or folder that can hold stories.
    """
    if source == "builtin":
        return Builtin(builtin_stories)
    if source == "tinystories":
        return hub.Hub(hub.TINYSTORIES, streaming)
    path = Path(source)
    try:
        path = path.expanduser()
        exists = path.exists()
    except (OSError, RuntimeError):  # a name too long for any file, or ~ of a user who is not there
        exists = False
    if re.match("[a-z0-9]+://", source):
        raise UsageError(f"--data {source[:200]} is an address: download it first, and give the file")
    if not exists:
        raise UsageError(f"--data {source[:200]}: no such file or folder (nor is it builtin or tinystories)")
    if not path.is_file() and not path.is_dir():
        raise UsageError(f"--data {source} is a pipe or a device: write the stories to a file first")
    inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    found = [p for p in inside if format_of(p) and not p.name.startswith(".")]
    if not found:
        kinds = f"{', '.join(FORMATS)}, also as {' or '.join(COMPRESSIONS)}"
        raise UsageError(f"--data {source}: {'holds no file' if path.is_dir() else 'is not a file'} of {kinds}")
    return Files(path, tuple(found))


def counted(stories: int) -> str:
    """For example "1 story", "2,000 stories"."""
    return f"{stories:,} {'story' if stories == 1 else 'stories'}"


def cut(
    source: "Source", skip_bad: bool, left_out: LeftOut, advance: Advance, held_out_only: bool = False
) -> Iterator[Piece]:
    """Read a source from its start and yield its stories in pieces, always the same ones.

    Args:
        source: what to read.
        skip_bad: leave malformed records out in place of stopping at the first.
        left_out: counts what is left out, up to the piece that was yielded last.
        advance: is told what was read, in the unit of `source.total`.
        held_out_only: of a source with its own split, read only the held-out stories.

    Raises:
        UserError: a file cannot be read, or a record is malformed and `skip_bad` is False.
    """
    if isinstance(source, Builtin):
        yield from source.pieces(advance)
        return
    # The held-out stories first: of one and its copy on the training side, the copy is the duplicate.
    for held_out in ((True,) if held_out_only else (True, False)) if source.own_split else (None,):
        texts, characters = [], 0
        for text in _good(source.read(held_out, advance), skip_bad, left_out):
            texts.append(text)
            characters += len(text)
            if characters >= PIECE_CHARACTERS:
                yield Piece(held_out, texts)
                texts, characters = [], 0
        if texts:
            yield Piece(held_out, texts)


def _good(items: Iterator[str | BadRecord], skip_bad: bool, left_out: LeftOut) -> Iterator[str]:
    for item in items:
        if isinstance(item, BadRecord):
            if not skip_bad:
                raise UserError(f"{item.where}: {item.problem}; mend it, or leave such records out with --skip-bad")
            left_out.bad += 1
            if left_out.bad <= LISTED_BAD_RECORDS:
                left_out.first_bad.append(f"{item.where}: {item.problem}")
        elif not item or item.isspace():
            left_out.empty += 1
        else:
            yield item


@dataclass(frozen=True)
class Builtin:
    """The stories of the built-in grammar."""

    count: int
    name: str = "builtin"
    own_split: str = ""
    unit: str = " stories"

    @property
    def fingerprint(self) -> dict[str, Any]:
        """How many, and what writes them."""
        code = b"".join(path.read_bytes() for path in (Path(grammar.__file__), grammar.STORYTELLER))
        return {"builtin": self.count, "seed": BUILTIN_SEED, "grammar": hashlib.sha256(code).hexdigest()}

    @property
    def total(self) -> int:
        """Number of stories."""
        return self.count

    def pieces(self, advance: Advance) -> Iterator[Piece]:
        """Numbers of stories: whoever works on a piece writes them."""
        for start in range(0, self.count, PIECE_BUILTIN):
            stories = range(start, min(start + PIECE_BUILTIN, self.count))
            advance(len(stories))
            yield Piece(None, stories)


@dataclass(frozen=True)
class Files:
    """A file, or all files of a folder in the order of their names."""

    path: Path
    files: tuple[Path, ...]
    unit: str = "B"

    @property
    def name(self) -> str:
        """The path as it was given."""
        return str(self.path)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Names, sizes and times of change: a file that is written to again is another source."""
        status = [(path.resolve(), path.stat()) for path in self.files]
        return {"files": [[str(path), status.st_size, status.st_mtime_ns] for path, status in status]}

    @property
    def own_split(self) -> str:
        """Some, but not all, of the files may be held out by their names."""
        return "the names of the files" if 0 < sum(map(self._is_held_out, self.files)) < len(self.files) else ""

    @property
    def total(self) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_size for path in self.files)

    def read(self, held_out: bool | None, advance: Advance) -> Iterator[str | BadRecord]:
        """The stories of all files, or of those that are, or are not, held out."""
        for path in self.files:
            if held_out is None or self._is_held_out(path) == held_out:
                yield from read_file(path, advance)

    def _is_held_out(self, path: Path) -> bool:
        name = str(path.relative_to(self.path)).lower()
        return re.search(r"(?<![a-z])(valid|validation|test)(?![a-z])", name) is not None


Source = Builtin | Files | hub.Hub
