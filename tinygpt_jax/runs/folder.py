"""A run's folder: who may write to it, its JSON-lines files, and how a change to a file is noticed.

runs/
    config.json  corpus.json         what is trained, and on which stories; for readers, a run goes on without them
    checkpoints/                     see `checkpoint`
    metrics.jsonl  samples.jsonl     only what follows from the configuration and the data, so that a run that was
                                     interrupted and resumed writes the same bytes as one that was not
    timings.jsonl                    what depends on the clock
    plots/  report.html              see `report`

Each checkpoint keeps the size and sha256 of these files: the state of a run is in one place.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt_jax.errors import UserError

LINES = ("metrics.jsonl", "timings.jsonl", "samples.jsonl")
WHOLE = ("config.json", "corpus.json")


class Mark(NamedTuple):
    """A file's content at some time: its first `size` bytes have this checksum."""

    size: int
    sha256: str


_EMPTY = Mark(0, hashlib.sha256().hexdigest())


def mark_of(path: Path) -> Mark | None:
    """The mark of a file as it is; None where there is none."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return Mark(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def has_changed(path: Path, mark: Mark) -> bool:
    """Whether a file no longer begins with, or where it is never added to, is no longer what was marked."""
    if path.name not in LINES:
        return mark_of(path) != mark
    return not path.is_file() or _hash_start(path, mark.size).hexdigest() != mark.sha256


def check_folder(workdir: Path) -> None:
    """Raise UserError if `workdir` is not a folder that can be written to and could not become one."""
    existing = next(path for path in [workdir, *workdir.absolute().parents] if path.exists())
    if not existing.is_dir():
        raise UserError(f"--workdir {workdir}: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir {workdir}: no permission to write to {existing}; choose another folder")


def check_history(workdir: Path) -> None:
    """Raise UserError if metrics tell of checkpoints, where there is none: a fresh run would write over them.

    A checkpoint follows each evaluation, so a run that was killed before its first one has no line after that.
    """
    path = workdir / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    if any(b'"validation_loss"' in line for line in lines[:-1]):
        raise UserError(
            f"{workdir} has the metrics of a run and none of its checkpoints: put them back, remove {path} to train "
            "anew, or choose another --workdir"
        )


@contextmanager
def sole_process(workdir: Path) -> Iterator[None]:
    """Hold the folder's lock. The system lets go of it when the process ends in whatever way, so it cannot go stale.

    Raises:
        UserError: another process trains here.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        file = (workdir / ".lock").open("a+")
    except OSError as error:
        raise UserError(f"--workdir {workdir}: {error.strerror}; choose another folder") from None
    with file, disk_errors(workdir):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise UserError(
                f"another process (pid {holder}) is training in {workdir}; wait for it, or stop it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextmanager
def disk_errors(workdir: Path) -> Iterator[None]:
    """Say in one line what the system refuses.

    Raises:
        UserError: in place of an OSError.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads our output: no error of a disk
        raise
    except OSError as error:
        raise UserError(
            f"{error.filename or workdir}: {error.strerror or error}; make room or give permission there and give "
            "the same command again: it goes on from the last checkpoint, which is intact"
        ) from error


class RunFiles:
    """The JSON-lines files of a run folder, one object per line, append only."""

    def __init__(self, workdir: Path, marks: Mapping[str, Mark]) -> None:
        """Open them for appending, cut back to what they held when they were marked; files without a mark are emptied.

        Raises:
            UserError: what was marked is no longer there.
        """
        self.workdir = workdir
        marks = {name: marks.get(name, _EMPTY) for name in LINES}
        for name, mark in marks.items():
            path = workdir / name
            if mark.size and not path.exists():
                print(f"warning: {path} is gone, and with it its lines of earlier steps", file=sys.stderr)
                marks[name] = _EMPTY
            elif mark.size and has_changed(path, mark):
                raise UserError(
                    f"{path} was changed since the last checkpoint: put the original back, or remove the file to go "
                    "on without its lines of earlier steps"
                )
        self._files = {name: (workdir / name).open("ab") for name in LINES}
        for name, file in self._files.items():
            file.truncate(marks[name].size)
        self._sizes = {name: mark.size for name, mark in marks.items()}
        self._hashes = {name: _hash_start(workdir / name, mark.size) for name, mark in marks.items()}

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Append one object."""
        line = (json.dumps(values, ensure_ascii=False) + "\n").encode()
        self._files[name].write(line)
        self._files[name].flush()
        self._hashes[name].update(line)
        self._sizes[name] += len(line)

    def marks(self) -> dict[str, Mark]:
        """Marks of all files of the folder as they are, which are on the disk by then."""
        for file in self._files.values():
            os.fsync(file.fileno())
        lines = {name: Mark(self._sizes[name], self._hashes[name].hexdigest()) for name in LINES}
        whole = {name: mark_of(self.workdir / name) for name in WHOLE}
        return lines | {name: mark for name, mark in whole.items() if mark}

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def _hash_start(path: Path, size: int) -> Any:
    """The sha256 object of a file's first `size` bytes, to go on from; of fewer where the file is shorter."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, 2**20))):
            sha256.update(chunk)
            size -= len(chunk)
    return sha256
