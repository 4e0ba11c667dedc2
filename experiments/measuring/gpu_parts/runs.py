"""What the command `experiments.train` does: whole runs, the same bits twice, and a run that was killed."""

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from experiments.measuring.breaking.outcome import outcome
from experiments.measuring.breaking.victim import TINY, is_finished
from experiments.measuring.gpu_parts.task import Piece, Task
from experiments.measuring.tables import Table, spread
from tinygpt_jax.errors import UserError
from tinygpt_jax.runs.checkpoint_files import checkpoints
from tinygpt_jax.runs.record import read_record

_SHORT, _SAVED = 30, 10  # updates of a run that is compared, and from save to save


def runs(task: Task) -> Iterator[Piece]:
    """Runs of the presets for a GPU on the stories given."""
    for preset in ["quickstart"] if task.quick else ["tinystories", "tinystories-modern"]:
        workdir = task.out / "runs" / preset
        every = {"--eval-every": max(1, task.updates // 4), "--log-every": max(1, task.updates // 20)}
        flags = ["--steps", task.updates, "--eval-batches", 20, *chain.from_iterable(every.items())]
        seconds = _train(task, workdir, preset, *flags)
        record = read_record(workdir)
        losses, validation, speeds = (record.curves[name] for name in ("loss", "validation_loss", "tokens_per_second"))
        step, best = min(validation, key=lambda point: point[1])
        yield (
            f"{preset}, {task.updates:,} updates",
            {
                preset: {
                    "tokens/s": spread(speed for _, speed in speeds[1:]),  # the first update was compiled
                    "first loss": losses[0][1],
                    "last loss": losses[-1][1],
                    "best validation loss": best,
                    "at step": step,
                    "last validation loss": validation[-1][1],
                    "seconds in all": seconds,
                }
            },
        )
        told = [sample for sample in record.samples if sample.step in (step, task.updates)]
        yield f"{preset}, samples", {f"step {story.step:,}: {story.prompt!r}": {"story": story.text} for story in told}


def deterministic(task: Task) -> Iterator[Piece]:
    """The same run twice with `--deterministic`."""
    whole, again = _whole(task), task.out / "runs" / "again"
    _train(task, again, *_compared(task))
    yield "the same run twice with --deterministic", _same(again, whole)


def kill(task: Task) -> Iterator[Piece]:
    """A run that was killed after a save, and resumed, against the one that was not."""
    whole, killed = _whole(task), task.out / "runs" / "killed"
    process = _start(task, killed, *_compared(task))
    while process.poll() is None and not checkpoints(killed):
        time.sleep(0.002)
    process.kill()
    process.wait()
    if is_finished(killed):
        raise UserError(f"{killed} had ended before it could be killed")
    saved = checkpoints(killed)[-1].step
    _train(task, killed, *_compared(task), fresh=False)
    table = _same(killed, whole)
    table["killed"] = {"same": f"after the save of step {saved} of {_SHORT}, with SIGKILL"}
    yield "a run that was killed and resumed, with --deterministic", table


def _whole(task: Task) -> Path:
    """The run that others are compared with; of this command's other part, if that made one."""
    workdir = task.out / "runs" / "whole"
    page = workdir / "report.html"
    if not (page.exists() and page.stat().st_mtime > task.begun):
        _train(task, workdir, *_compared(task))
    return workdir


def _compared(task: Task) -> list[str]:
    """A preset, and flags."""
    flags = (
        f"--deterministic --steps {_SHORT} --save-every {_SAVED} --eval-every {_SHORT} --eval-batches 2 --log-every 5"
    )
    return ["quickstart" if task.quick else "tinystories", *flags.split()]


def _train(task: Task, workdir: Path, preset: str, *flags: object, fresh: bool = True) -> float:
    """Train to the end, and return how many seconds that took.

    Raises:
        UserError: it failed, with what it said last.
    """
    begun = time.monotonic()
    if code := _start(task, workdir, preset, *flags, fresh=fresh).wait():
        said = _log(workdir).read_text(errors="replace").strip().splitlines()
        raise UserError(f"experiments.train ended with exit code {code}: {said[-1] if said else 'it said nothing'}")
    return time.monotonic() - begun


def _start(task: Task, workdir: Path, preset: str, *flags: object, fresh: bool = True) -> subprocess.Popen[bytes]:
    """A process that trains in a new folder, or (not fresh) goes on with what is in one."""
    if fresh:
        shutil.rmtree(workdir, ignore_errors=True)
    workdir.parent.mkdir(parents=True, exist_ok=True)
    size = TINY if task.quick else ["--preset", preset]
    words = ["--workdir", workdir, *size, *flags, "--source", task.source]
    with _log(workdir).open("wb" if fresh else "ab") as log:
        return subprocess.Popen([sys.executable, "-m", "experiments.train", *map(str, words)], stdout=log, stderr=log)


def _log(workdir: Path) -> Path:
    return workdir.with_name(f"{workdir.name}.log")


def _same(workdir: Path, whole: Path) -> Table:
    """What of a run's end is that of another."""
    import jax

    jax.config.update("jax_platforms", "cpu")  # comparing is no work for the GPU
    found, expected = outcome(workdir), outcome(whole)
    return {what: {"same": "yes" if found[what] == expected[what] else "NO"} for what in expected}
