"""Whether the files of a prepared corpus are still what was written.

Checksums are compared the first time a corpus is opened, which takes a second for each gigabyte, and again when one of
its files has changed hands or content since: `checked` beside the files remembers what the system said of them (number
and times of change) when they were read. A disk that loses bits changes no times; `verify` reads everything.
"""

import contextlib
import json
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

from tinygpt_jax.errors import UserError
from tinygpt_jax.files import own_checksum, read_text, sha256_of, write_atomically

CHECKED = "checked"
# A change within one tick of the system's clock leaves the times as they are: what is younger is not remembered.
_TICK_NS = 10**9


def check(folder: Path, names: Collection[str], verify: bool) -> tuple[dict[str, Any], bool]:
    """The manifest of a corpus whose files have the sizes in it, and its checksums unless they were compared before.

    Args:
        folder: of the corpus.
        names: of the files that a corpus has.
        verify: compare the checksums in any case.

    Returns:
        The manifest, and whether checksums had to be compared: the files may be new to this machine.

    Raises:
        UserError: a file is missing, or is not what was written.
        ValueError, KeyError, TypeError, AttributeError, RecursionError: the manifest is none.
    """
    path = folder / "manifest.json"
    manifest = json.loads(read_text(path))
    if manifest["sha256"] != own_checksum(manifest):
        raise UserError(f"{path} does not have the content that was written")
    if set(manifest["files"]) != set(names):
        raise UserError(f"{path} does not name the files of a corpus")
    found = {}
    for name, entry in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path} is missing")
        status = path.stat()
        if status.st_size != entry["bytes"]:
            raise UserError(f"{path} has {status.st_size:,} bytes in place of {entry['bytes']:,}")
        found[name] = [status.st_ino, status.st_mtime_ns, status.st_ctime_ns]  # nobody sets the last but the system
    seen = json.dumps([manifest["sha256"], found])
    with contextlib.suppress(UserError):  # not remembered, or damaged
        if not verify and read_text(folder / CHECKED) == seen:
            return manifest, False
    for name, entry in manifest["files"].items():
        if sha256_of(folder / name) != entry["sha256"]:
            raise UserError(f"{folder / name} does not have the content that was written")
    if time.time_ns() - max(change for *_, change in found.values()) > _TICK_NS:
        with contextlib.suppress(UserError):  # a folder that cannot be written to is read each time
            write_atomically(folder / CHECKED, seen.encode())
    return manifest, True
