"""Whether the files of a prepared corpus are still what was written.

Checksums are compared the first time a corpus is opened, which takes a second for each gigabyte, and again for every
file that has changed hands or content since: `checked` beside the files remembers what the system said of each (size,
number and times of change) when it was read. A disk that loses bits changes no times; `verify` reads everything.
"""

import contextlib
import hashlib
import json
import time
from pathlib import Path
from typing import Any

from tinygpt_jax.errors import UserError
from tinygpt_jax.files import own_checksum, write_atomically

CHECKED = "checked"
_MAX_JSON_BYTES = 64 * 2**20  # a thousand long names of bad records take a hundredth of this
# A change within one tick of the system's clock leaves the times as they are: what is younger is not remembered.
_TICK_NS = 10**9


def read_manifest(path: Path, files: set[str]) -> dict[str, Any]:
    """A manifest that has the content that was written and names just these files.

    Raises:
        UserError: it is another, or too large.
        OSError, ValueError, KeyError, TypeError, RecursionError: it cannot be read.
    """
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise damaged(path, f"has {path.stat().st_size:,} bytes, more than any corpus needs")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if manifest["sha256"] != own_checksum(manifest):
        raise damaged(path, "does not have the content that was written")
    if set(manifest["files"]) != files:
        raise damaged(path, "does not name the files of a corpus")
    return manifest


def check_files(folder: Path, manifest: dict[str, Any], verify: bool) -> bool:
    """Compare every file's size, and the checksum of each that is not as it was when it was last compared.

    Args:
        folder: of the corpus.
        manifest: its content.
        verify: compare the checksums of all files.

    Returns:
        Whether a checksum had to be compared: the files may be new to this machine.

    Raises:
        UserError: a file is missing, or is not what was written.
    """
    known = {} if verify else _known(folder)
    found = {}
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise damaged(path, "is missing")
        found[name] = _status(path)
        if path.stat().st_size != entry["bytes"]:
            raise damaged(path, f"has {path.stat().st_size:,} bytes in place of {entry['bytes']:,}")
        if known.get(name) != [entry["sha256"], *found[name]]:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                    raise damaged(path, "does not have the content that was written")
    checked = {name: [manifest["files"][name]["sha256"], *status] for name, status in found.items()}
    if checked == known:
        return False
    if time.time_ns() - max(change for *_, change in found.values()) > _TICK_NS:
        with contextlib.suppress(UserError):  # a folder that cannot be written to is read each time
            write_atomically(folder / CHECKED, json.dumps(checked).encode())
    return True


def damaged(path: Path, what: str) -> UserError:
    """An error that says what is wrong with a file of a corpus, and what to do."""
    return UserError(
        f"{path} {what}: this prepared corpus is damaged; build it anew with the same flags and --rebuild "
        "(python -m experiments.prepare)"
    )


def _status(path: Path) -> list[int]:
    """What tells whether a file was changed, the time of that last. Nobody sets st_ctime but the system."""
    status = path.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _known(folder: Path) -> dict[str, Any]:
    try:
        known = json.loads((folder / CHECKED).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
