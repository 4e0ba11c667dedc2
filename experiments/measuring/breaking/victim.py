"""A training process to be struck, and when. For `faults`."""

import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tinygpt_jax.errors import UserError
from tinygpt_jax.runs.checkpoint_files import checkpoints

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)

# A model so small that a process starts, trains and saves within seconds, with dropout and with stories of its own.
TINY = (
    "--preset quickstart --builtin-stories 300 --context-length 32 --n-layers 1 --d-model 32 --n-heads 2 --d-ff 64 "
    "--dropout 0.2 --batch-size 8 --steps 300 --eval-every 10 --eval-batches 2 --log-every 3 --warmup-steps 3"
).split()


def is_finished(workdir: Path) -> bool:
    """Whether the last update of a run is saved and its report is drawn."""
    saved = checkpoints(workdir)
    return bool(saved) and (workdir / "report.html").exists() and saved[-1].step == saved[-1].config().training.steps


def start(workdir: Path, *flags: str) -> subprocess.Popen[str]:
    """A process that trains."""
    command = [sys.executable, "-m", "experiments.train", "--workdir", str(workdir), *(flags or TINY)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def wait(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it said on standard error."""
    _, errors = process.communicate()
    return process.returncode, errors


def _is_evaluating(workdir: Path) -> bool:
    """Whether the validation loss of a step is written and its stories are not yet."""
    metrics, samples = ((_read(workdir / f"{name}.jsonl").splitlines() or [""])[-1] for name in ("metrics", "samples"))
    return "validation_loss" in metrics and metrics.split(",")[0] != samples.split(",")[0]


# When to strike: what the folder must show, with the process's start in ns, and how many seconds more at most.
MOMENTS: dict[str, tuple[Callable[[Path, int], bool], float]] = {
    "start": (lambda workdir, since: True, 4.0),
    "update": (lambda workdir, since: _modified(workdir / "metrics.jsonl") > since, 1.5),
    "evaluation": (lambda workdir, since: _is_evaluating(workdir), 0.05),
    "save": (lambda workdir, since: any((workdir / "checkpoints").glob(".writing-*")), 0.2),
    "removal": (lambda workdir, since: any((workdir / "checkpoints").glob(".removing-*")), 0.005),
    "report": (lambda workdir, since: _modified(workdir / "plots") > since, 2.5),
}


def wait_for(process: subprocess.Popen[str], workdir: Path, aim: str, chance: random.Random) -> None:
    """Return at a moment of this kind, or when the process has ended before it."""
    has_come, longest = MOMENTS[aim]
    since, delay = time.time_ns(), chance.uniform(0, longest)
    while process.poll() is None and not has_come(workdir, since):
        time.sleep(0.002)
    sleep(process, delay)


def hit(process: subprocess.Popen[str], workdir: Path, aim: str, chance: random.Random) -> str:
    """Send a signal, sometimes two; returns their names, or nothing if the process had ended."""
    signals, pause = chance.choices(SIGNALS, k=chance.choice([1, 1, 1, 2])), chance.uniform(0, 0.3)
    wait_for(process, workdir, aim, chance)
    sent = []
    for number in signals:
        if process.poll() is None:
            process.send_signal(number)
            sent.append(number.name)
            sleep(process, pause)
    return ", ".join(sent)


def place(workdir: Path, aim: str) -> str:
    """Where a process was when it was killed, as far as its folder shows."""
    if aim == "start":
        return "at start"
    if any((workdir / "checkpoints").glob(".writing-*")):
        return "inside a save"
    if any((workdir / "checkpoints").glob(".removing-*")):
        return "inside a removal"
    if _is_evaluating(workdir):
        return "inside an evaluation"
    return "at the report" if aim == "report" else "elsewhere"


def check_code(code: int, errors: str, sent: str, where: str) -> None:
    """Raise UserError if a process ended in another way than the signals it was sent explain."""
    allowed = {0}
    if "SIGKILL" in sent:
        allowed.add(-signal.SIGKILL)
    if "SIGINT" in sent:
        allowed.add(130)
    if "SIGTERM" in sent:  # before the command has taken it over
        allowed.add(-signal.SIGTERM)
    # Python itself answers Ctrl-C while the command is still being imported, with a traceback.
    interrupted = "SIGINT" in sent and code in (1, -signal.SIGINT) and "KeyboardInterrupt" in errors
    if not interrupted and (code not in allowed or "Traceback" in errors):
        raise UserError(f"{where}: exit code {code}: {errors[-2000:]}")


def held(process: subprocess.Popen[str]) -> dict[str, int]:
    """What a process holds, as Linux says; nothing once it has ended."""
    if process.poll() is not None:
        return {}
    folder = Path(f"/proc/{process.pid}")
    lines = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    memory = round(int(lines["VmRSS"].split()[0]) / 1000)
    return {"memory/MB": memory, "open files": len(list((folder / "fd").iterdir())), "threads": int(lines["Threads"])}


def sleep(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait, but not for a process that has ended."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _modified(path: Path) -> int:
    """When, in ns; 0 if it is not there."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
