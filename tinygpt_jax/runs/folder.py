"""A run's folder: who may write to it, its JSON-lines files, and how a change to a file is noticed.

runs/
    config.json  corpus.json         what is trained, and on which stories; for readers, a run goes on without them
    checkpoints/                     see `checkpoint`
    metrics.jsonl  samples.jsonl     only what follows from the configuration and the data, so that a run that was
                                     interrupted and resumed writes the same bytes as one that was not
    timings.jsonl                    what depends on the clock
    plots/  report.html              see `report`
    stories.json                     see `judging`; where `experiments.evaluate --stories` was called

Each checkpoint keeps the size and sha256 of these files: the state of a run is in one place.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tinygpt_jax.config import Config
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import disk_errors, locked, read_text, sha256_of

LINES = ("metrics.jsonl", "timings.jsonl", "samples.jsonl")
WHOLE = ("config.json", "corpus.json")


class Mark(NamedTuple):
    """A file's content at some time: its first `size` bytes have this checksum."""

    size: int
    sha256: str


def mark_of(path: Path) -> Mark | None:
    """The mark of a file as it is; None where there is none."""
    return Mark(path.stat().st_size, sha256_of(path)) if path.is_file() else None


def marks_of(workdir: Path) -> dict[str, Mark]:
    """Marks of the files of a run's folder as they are. That they are on the disk is for who keeps the marks."""
    found = {name: mark_of(workdir / name) for name in LINES + WHOLE}
    return {name: mark for name, mark in found.items() if mark}


def has_changed(path: Path, mark: Mark) -> bool:
    """Whether a file no longer begins with, or where it is never added to, is no longer what was marked."""
    if path.name not in LINES:
        return mark_of(path) != mark
    return not path.is_file() or _sha256_of_start(path, mark.size) != mark.sha256


def check_folder(workdir: Path) -> None:
    """Raise UserError if `workdir`, or its checkpoints, is not a folder to write to and could not become one."""
    for folder in (workdir / "checkpoints", workdir):
        existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
        if not existing.is_dir():
            raise UserError(f"--workdir {workdir}: {existing} is a file; choose another folder")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise UserError(f"--workdir {workdir}: no permission to write to {existing}; choose another folder")


def described(workdir: Path) -> Config | None:
    """What `config.json` says that is trained here; None where there is none, or it is damaged or no run's."""
    try:
        return Config.from_json(read_text(workdir / "config.json"))
    except UserError:
        return None


def check_is_ours(workdir: Path) -> None:
    """Raise UserError if a run, which has no checkpoint here yet, would write over files that are no run's.

    A run that was killed before its first checkpoint has left its configuration, which it writes first.
    """
    found = [name for name in (*WHOLE, *LINES, "report.html", "plots") if (workdir / name).exists()]
    if found and described(workdir) is None:
        raise UserError(
            f"{workdir} holds {', '.join(found)} and no run of ours, which would replace it: choose another --workdir"
        )


def check_history(workdir: Path) -> None:
    """Raise UserError if metrics tell of checkpoints, where there is none: a fresh run would write over them.

    An evaluation waits for the checkpoint of the one before. So a run that was killed before its first checkpoint was
    whole has no line of a second evaluation, and has begun a folder for them.
    """
    path, evaluation = workdir / "metrics.jsonl", b'"validation_loss"'
    evaluations = path.read_bytes().count(evaluation) if path.is_file() else 0
    if evaluations > (1 if (workdir / "checkpoints").is_dir() else 0):
        raise UserError(
            f"{workdir} has the metrics of a run and none of its checkpoints: put them back, remove {path} to train "
            "anew, or choose another --workdir"
        )


@contextmanager
def sole_process(workdir: Path) -> Iterator[None]:
    """Hold the folder's lock, and say in one line what the system refuses meanwhile.

    Raises:
        UserError: another process trains here; or in place of an OSError.
    """

    def refuse(holder: str) -> None:
        raise UserError(f"another process (pid {holder}) is training in {workdir}; wait for it, or stop it")

    remedy = "make room or give permission there, and give the same command again: what was saved is intact"
    with disk_errors(workdir, remedy), locked(workdir / ".lock", refuse):
        yield


def cut_back(workdir: Path, marks: Mapping[str, Mark]) -> None:
    """Begin the files of lines, or cut them back to what they held when they were marked; unmarked ones are emptied.

    Raises:
        UserError: what was marked is no longer there; nothing was cut.
    """
    sizes = dict.fromkeys(LINES, 0)
    for name in LINES:
        path, mark = workdir / name, marks.get(name)
        if mark is None or mark.size == 0:
            continue
        if not path.exists():
            print(f"warning: {path} is gone, and with it its lines of earlier steps", file=sys.stderr)
        elif has_changed(path, mark):
            raise UserError(
                f"{path} was changed since the last checkpoint: put the original back, or remove the file to go "
                "on without its lines of earlier steps"
            )
        else:
            sizes[name] = mark.size
    for name, size in sizes.items():
        with (workdir / name).open("ab") as file:
            file.truncate(size)


def add_line(path: Path, values: Mapping[str, Any]) -> None:
    """Append one object to a file of lines."""
    with path.open("ab") as file:
        file.write((json.dumps(values, ensure_ascii=False) + "\n").encode())


def _sha256_of_start(path: Path, size: int) -> str:
    """The checksum of a file's first `size` bytes; of fewer where the file is shorter."""
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while size > 0 and (chunk := file.read(min(size, 2**20))):
            sha256.update(chunk)
            size -= len(chunk)
    return sha256.hexdigest()
