"""A training process to be struck, and when. For `faults`."""

import contextlib
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tinygpt_jax.errors import UserError
from tinygpt_jax.runs.checkpoint_files import checkpoints

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
FULL_DISK = "full disk"

# A model so small that a process starts, trains and saves within seconds, with dropout and with stories of its own.
TINY = (
    "--preset quickstart --builtin-stories 300 --context-length 32 --n-layers 1 --d-model 32 --n-heads 2 --d-ff 64 "
    "--dropout 0.2 --batch-size 8 --steps 300 --eval-every 10 --eval-batches 2 --log-every 3 --warmup-steps 3"
).split()


def start(workdir: Path, *flags: str) -> subprocess.Popen[str]:
    """A process that trains."""
    command = [sys.executable, "-m", "experiments.train", "--workdir", str(workdir), *(flags or TINY)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it said on standard error."""
    _, errors = process.communicate()
    return process.returncode, errors


def sleep(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait, but not for a process that has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def is_finished(workdir: Path) -> bool:
    """Whether the last update of a run is saved and its report is drawn."""
    saved = checkpoints(workdir)
    return bool(saved) and (workdir / "report.html").exists() and saved[-1].step == saved[-1].config().training.steps


def _modified_since(path: Path, since: int) -> bool:
    return path.exists() and path.stat().st_mtime_ns > since


def _is_evaluating(workdir: Path) -> bool:
    """Whether the validation loss of a step is written and its stories are not yet."""
    metrics, samples = (workdir / "metrics.jsonl", workdir / "samples.jsonl")
    last, told = (path.read_bytes().split(b"\n")[-2:-1] if path.exists() else [] for path in (metrics, samples))
    return bool(last) and b"validation_loss" in last[0] and not (told and told[0].startswith(last[0].split(b",")[0]))


# When to strike: what the folder must show, with the process's start in ns, and how many seconds more at most.
MOMENTS: dict[str, tuple[Callable[[Path, int], bool], float]] = {
    "start": (lambda workdir, since: True, 4.0),
    "update": (lambda workdir, since: _modified_since(workdir / "metrics.jsonl", since), 1.5),
    "evaluation": (lambda workdir, since: _is_evaluating(workdir), 0.05),
    "save": (lambda workdir, since: any((workdir / "checkpoints").glob(".writing-*")), 0.2),
    "removal": (lambda workdir, since: any((workdir / "checkpoints").glob(".removing-*")), 0.005),
    "report": (lambda workdir, since: _modified_since(workdir / "plots", since), 2.5),
}


def wait_for(process: subprocess.Popen[str], workdir: Path, aim: str, chance: random.Random) -> None:
    """Return at a moment of this kind, or when the process has ended before it."""
    has_come, longest = MOMENTS[aim]
    since, delay = time.time_ns(), chance.uniform(0, longest)
    while process.poll() is None and not has_come(workdir, since):
        time.sleep(0.002)
    sleep(process, delay)


def hit(process: subprocess.Popen[str], workdir: Path, aim: str, chance: random.Random) -> tuple[str, str]:
    """Send a signal, sometimes two, or leave no room on its disk; returns what was done, if anything could be, and
    what the process held then."""
    ways, pause = chance.choices([*SIGNALS, FULL_DISK], k=chance.choice([1, 1, 1, 2])), chance.uniform(0, 0.3)
    room, held = chance.randrange(100_000), ""
    wait_for(process, workdir, aim, chance)
    done = []
    for way in ways:
        if process.poll() is None:
            held = _held(process)
            if isinstance(way, signal.Signals):
                process.send_signal(way)
            else:  # for each file: a limit that the system sets
                resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
            done.append(getattr(way, "name", FULL_DISK))
            sleep(process, pause)
    return ", ".join(done), held


def place(workdir: Path) -> str:
    """What a process was at when it was killed, as far as its folder shows."""
    return next((aim for aim in ("save", "removal", "evaluation") if MOMENTS[aim][0](workdir, 0)), "another moment")


def check_end(code: int, errors: str, how: str, where: str) -> None:
    """Raise UserError if a process ended in another way than what was done to it explains."""
    # A signal kills before the command has taken it over, and once Python ends after it.
    explained = {name: {-signal.Signals[name]} for name in ("SIGKILL", "SIGTERM", "SIGINT")}
    explained["SIGINT"].add(130)
    explained[FULL_DISK] = {1}
    allowed = {0}.union(*(codes for name, codes in explained.items() if name in how))
    # Python itself answers Ctrl-C while the command is still being imported, with a traceback.
    interrupted = "SIGINT" in how and code in allowed | {1} and "KeyboardInterrupt" in errors
    one_line = code != 1 or sum(line.startswith("error: ") for line in errors.splitlines()) == 1
    if not interrupted and (code not in allowed or not one_line or "Traceback" in errors):
        raise UserError(f"{where}, {how}: exit code {code}: {errors[-2000:]}")


def _held(process: subprocess.Popen[str]) -> str:
    """As Linux says."""
    folder = Path(f"/proc/{process.pid}")
    lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    memory, threads = (lines.get(name, "0").strip() for name in ("VmRSS", "Threads"))
    return f"{memory}, {threads} threads, {len(list((folder / 'fd').iterdir()))} open files"
