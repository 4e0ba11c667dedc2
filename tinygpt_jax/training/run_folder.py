"""A run's folder: who may write to it, and its JSON-lines files.

runs/
    config.json  corpus.json         what is trained, and on which stories
    checkpoints/                     see `checkpoint`
    metrics.jsonl  samples.jsonl     only what follows from the configuration and the data, so that a run that was
                                     interrupted and resumed writes the same bytes as one that was not
    timings.jsonl                    what depends on the clock
    plots/  report.html              see `report`
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinygpt_jax.errors import UserError


def check_folder(workdir: Path) -> None:
    """Raise UserError if `workdir` is not a folder that can be written to and could not become one."""
    existing = next(path for path in [workdir, *workdir.absolute().parents] if path.exists())
    if not existing.is_dir():
        raise UserError(f"--workdir {workdir}: {existing} is a file; choose another folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"--workdir {workdir}: no permission to write to {existing}; choose another folder")


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
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise UserError(
                f"another process (pid {holder}) is training in {workdir}; wait for it, or stop it"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


class RunFiles:
    """The JSON-lines files of a run folder: `metrics`, `timings` and `samples`. One object per line, append only."""

    names = ("metrics", "timings", "samples")

    def __init__(self, workdir: Path, keep_to_step: int) -> None:
        """Open them for appending, without the lines of later steps: a resumed run writes those again."""
        self.workdir = workdir
        self._files = {}
        for name in self.names:
            path = workdir / f"{name}.jsonl"
            kept = [line for line in _whole_lines(path) if json.loads(line)["step"] <= keep_to_step]
            temporary = path.with_suffix(".partial")
            temporary.write_text("".join(kept), encoding="utf-8")
            temporary.replace(path)
            self._files[name] = path.open("a", encoding="utf-8")

    def write(self, name: str, values: dict[str, Any]) -> None:
        """Append one object."""
        self._files[name].write(json.dumps(values, ensure_ascii=False) + "\n")
        self._files[name].flush()

    def sync(self) -> None:
        """Make sure that what was written is on the disk, before a checkpoint relies on it."""
        for file in self._files.values():
            os.fsync(file.fileno())

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()


def _whole_lines(path: Path) -> list[str]:
    """The lines of a JSON-lines file, without a last one that a crash tore."""
    if not path.exists():
        return []
    # Not splitlines(), which also splits at separators that stories may contain. What follows the last newline is torn.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
    for number, line in enumerate(lines, 1):
        try:
            ok = isinstance(json.loads(line)["step"], int)
        except (ValueError, KeyError, TypeError, RecursionError):
            ok = False
        if not ok:
            raise UserError(f"{path}, line {number}, is damaged: remove that line, or train into another --workdir")
    return [line + "\n" for line in lines]
