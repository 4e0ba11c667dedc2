"""Files, once for everybody: written whole or not at all, locked, read within bounds, and compared by checksum."""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Literal

from tinygpt_jax.errors import UsageError, UserError

_NO_ROOM = "make room or give permission there"  # what remedies say of a place that is right
MAX_JSON_BYTES = 64 * 2**20  # no JSON file that this program writes comes near this
_FIRST_BYTES = {"page": b"<!doctype html>", "picture": b"\x89PNG"}


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name once it is written and on the disk, and leaves nothing behind if that fails.

    Raises:
        OSError: the system refuses; what was at `path` is untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; its folder is made if needed.

    Raises:
        UserError: the system refuses. What was at `path` is untouched, and nothing is left beside it.
    """
    try:
        with whole_file(path) as file:
            file.write(content)
    except OSError as error:
        raise UserError(f"cannot write {_refusal(error, path, _NO_ROOM)}") from None


def check_output(flag: str, path: Path, form: Literal["page", "picture"]) -> None:
    """Make sure that a file which the user names for a page or a picture takes the place of nothing else.

    Args:
        flag: the flag that names it.
        path: the file. Where there is one, it may be replaced if it is empty or of the same form.
        form: an HTML page, or a PNG.

    Raises:
        UsageError: there is a folder, a device or a pipe, another file, or the report of a run.
        UserError: what is there cannot be read.
    """
    with disk_errors(path, f"choose another file for {flag}"):
        if path.is_dir():
            raise UsageError(f"{flag} {path} is a folder: give a file for the {form}")
        if not path.exists():
            return
        if not path.is_file():
            raise UsageError(f"{flag} {path} is no regular file, and is left alone: give a file for the {form}")
        in_a_run = any(path.with_name(name).exists() for name in ("config.json", "metrics.jsonl"))
        if path.name == "report.html" and in_a_run:
            raise UsageError(f"{flag} {path} is the report of a run, and is left alone: choose another name")
        with path.open("rb") as file:
            first = file.read(len(_FIRST_BYTES[form]))
        if first.lower() not in (b"", _FIRST_BYTES[form].lower()):
            raise UsageError(f"{flag} {path} is there, is no {form}, and is left alone: choose another name")


def sync(path: Path) -> None:
    """Return when a file's content, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_text(path: Path, errors: str = "strict", most_bytes: int = MAX_JSON_BYTES) -> str:
    """The text of a file that may be a stranger's.

    Args:
        path: the file.
        errors: `replace` for U+FFFD in place of what is not UTF-8, so that the rest can be used.
        most_bytes: what is larger is refused.

    Raises:
        UserError: it cannot be read, is no file (a pipe would be waited for for ever), too large, or not UTF-8.
    """
    with disk_errors(path, "is it there, and may you read it?"):
        if path.exists() and not path.is_file():
            raise UserError(f"{path} is not a file")
        if path.stat().st_size > most_bytes:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, more than this program ever writes there")
        try:
            return path.read_text(encoding="utf-8", errors=errors)
        except UnicodeDecodeError:
            raise UserError(f"{path} is damaged: not UTF-8") from None


def sha256_of(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def own_checksum(document: Mapping[str, Any]) -> str:
    """sha256 of all that a JSON document says, apart from its own field `sha256`: is it what was written?

    Every format version keeps it in this form, so that a later version is not taken for damage, nor damage for a
    later version.
    """
    said = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


@contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold a lock file. The system lets go of it when the process ends in whatever way, so it cannot go stale.

    Args:
        path: the file; it and its folder are made if needed.
        busy: told the process that holds it, if one does. Where it returns, the lock is waited for.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+")
        except FileNotFoundError:
            if path.parent.exists():
                raise
            continue  # who held the lock has removed it with its folder just now
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                busy(file.read(20).strip() or "unknown")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_still_at(path, file.fileno()):
                continue  # who held it removed it, perhaps with its folder: what we hold excludes nobody
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
            return


@contextmanager
def disk_errors(place: Path, remedy: str) -> Iterator[None]:
    """Say in one line what the system refuses, and what to do.

    Raises:
        UserError: in place of an OSError.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads our output: no error of a disk
        raise
    except OSError as error:
        raise UserError(_refusal(error, place, remedy)) from error


def _refusal(error: OSError, place: Path, remedy: str) -> str:
    name, what = str(error.filename or place), error.strerror or str(error)
    if isinstance(error, NotADirectoryError | FileExistsError | IsADirectoryError):
        remedy = remedy.replace(_NO_ROOM, "move it away")
        in_the_way = [path for path in place.parents if path.exists() and not path.is_dir()]
        what = f"{in_the_way[0]} is a file and no folder" if in_the_way else what
    return f"{place if name.endswith('.partial') else name}: {what}; {remedy}"  # ours, which the user never gave


def _is_still_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
