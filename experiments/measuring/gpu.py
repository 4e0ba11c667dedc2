"""Measure everything that needs an NVIDIA GPU: python -m experiments.measuring.gpu --data stories.txt

startup        seconds from starting Python to the end of the first update, with nothing compiled before and again
training       updates of 32 and 256 rows beside PyTorch, eager and compiled
decoding       1, 16 and 64 texts beside Hugging Face
profile        memory of an update, and the time of its kernels, by part of the model and the longest
runs           whole runs of `tinystories` and `tinystories-modern`: speed, losses, stories
deterministic  the same run twice with --deterministic: are they the same to the bit?
kill           a run that is killed and resumed: does it end as one that was not, to the bit?

Each part is a process of its own with a time limit. What it finds is kept at once, in `parts/` of the folder, and
`gpu.json` and `gpu.html` hold all that lies there: a part can be measured alone, and again. A part that fails says so
in a line, and the others go on. PyTorch and Hugging Face are left out where they are not installed.
"""

import datetime
import importlib.metadata
import os
import platform
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from experiments import cli
from experiments.measuring.gpu_parts.contests import decoding, startup, training
from experiments.measuring.gpu_parts.page import goals, write_page
from experiments.measuring.gpu_parts.profile import profile
from experiments.measuring.gpu_parts.runs import deterministic, kill, runs
from experiments.measuring.gpu_parts.task import Part, Task
from experiments.measuring.gpu_parts.worker import read_result, run_part, write_result
from experiments.measuring.tables import Table, print_table
from tinygpt_jax.devices import instruction_sets, restart_with_huge_pages
from tinygpt_jax.errors import UserError, require

Name = Literal["startup", "training", "decoding", "profile", "runs", "deterministic", "kill"]

# In this order, since the first ones compile for the others; with the most seconds that each may take.
PARTS: dict[str, tuple[Part, float]] = {
    "startup": (startup, 240),
    "training": (training, 480),
    "decoding": (decoding, 300),
    "profile": (profile, 300),
    "runs": (runs, 500),
    "deterministic": (deterministic, 300),
    "kill": (kill, 300),
}


@dataclass(frozen=True)
class Arguments:
    """Measure everything that needs an NVIDIA GPU, in parts, and write one JSON and one page."""

    parts: tuple[Name, ...] = get_args(Name)  # which
    out: Path | None = None  # folder for what is found, with gigabytes of checkpoints (default: runs/gpu; gpu-quick)
    source: str | None = None  # (or --data) stories of whole runs (default: tinystories, and builtin with --quick)
    updates: int = 2000  # of each whole run
    repeats: int = 4  # turns of each contestant
    quick: bool = False  # a small model and little of everything, to try this on any device


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, measure part by part, and print each table when its part is done.

    Raises:
        UserError: no part could be measured whole, or there is no GPU.
    """
    arguments = cli.parse(Arguments, argv)
    require(arguments.parts != (), "--parts", "without a value", "--help lists what it takes")
    for name in ("updates", "repeats"):
        require(getattr(arguments, name) >= 1, f"--{name}", getattr(arguments, name), "must be at least 1")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as who rents machines ends a command: it is Ctrl-C
    machine = _machine()
    if "driver" not in machine and not arguments.quick:
        raise UserError("no NVIDIA GPU is here (nvidia-smi tells of none); --quick tries the command on any device")
    source = arguments.source or ("builtin" if arguments.quick else "tinystories")
    if arguments.quick:
        machine["measured"] = "with --quick: a small model and little of everything, to try the command"
    out = arguments.out or Path("runs/gpu-quick" if arguments.quick else "runs/gpu")
    task = Task(out.absolute(), source, arguments.updates, arguments.repeats, arguments.quick, begun=time.time())
    failed, reached = [], {}
    for name in arguments.parts:
        try:
            result = run_part(*PARTS[name], task)
        finally:  # also of Ctrl-C
            reached = _write_report(task, machine)
        for title, table in result["tables"].items():
            print_table(title, table)
        told = f"failed: {result['error']}" if result["error"] else "done"
        print(f"\n{name}: {told}, {result['seconds']:.0f} s", flush=True)
        failed += [name] if result["error"] else []
    print_table("goals for one NVIDIA H100", reached)
    print(f"\n{task.out / 'gpu.html'}: everything on one page")
    if failed:
        raise UserError(f"{', '.join(failed)} failed; {task.out / 'parts'} holds what each printed")


def _write_report(task: Task, machine: dict[str, str]) -> Table:
    """Of all parts that lie in the folder; returns the goals."""
    files = {name: task.out / "parts" / f"{name}.json" for name in PARTS}
    parts = {name: read_result(file) for name, file in files.items() if file.exists()}
    report = {"date": datetime.date.today().isoformat(), "machine": machine, "goals": goals(parts), "parts": parts}
    write_result(task.out / "gpu.json", report)
    write_page(task.out / "gpu.html", report)
    return report["goals"]


def _machine() -> dict[str, str]:
    """The card with its driver, where nvidia-smi tells of one; processor; and versions of what is measured."""
    found: dict[str, str] = {}
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,power.limit", "--format=csv,noheader"]
        told = subprocess.run(query, capture_output=True, text=True).stdout.splitlines()
        if told and told[0].count(",") == 3:
            found |= dict(zip(("GPU", "driver", "memory", "power"), told[0].split(", "), strict=True))
            found["GPU"] = f"{len(told)} x {found['GPU']}"
    found["CPU"] = f"{os.cpu_count()} cores ({', '.join(instruction_sets())})"
    found["Python"] = platform.python_version()
    for package in ("jax", "jaxlib", "torch", "transformers"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


if __name__ == "__main__":
    restart_with_huge_pages()
    cli.run(main)
