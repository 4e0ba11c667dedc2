"""Training runs of several processes on this machine, and how they end. For `measuring.several`."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.measuring.breaking.victim import TINY
from tinygpt_jax.errors import UserError

STEPS = 60
FLAGS = (*TINY, "--steps", str(STEPS), "--eval-every", "20", "--log-every", "1", "--join-seconds", "40")
LONGEST = 60.0  # seconds within which processes end where one was killed


@dataclass(frozen=True)
class Shape:
    """On what a run is trained."""

    processes: int
    devices: int  # of each process
    mesh: str

    def __str__(self) -> str:
        return f"{self.processes} x {self.devices}, {self.mesh}"


@dataclass(frozen=True)
class Ended:
    """What a process left."""

    code: int
    errors: str  # its standard error

    @property
    def said(self) -> list[str]:
        """Its lines about what was wrong."""
        return [line for line in self.errors.splitlines() if line.startswith("error: ")]


def start(workdir: Path, shape: Shape, *flags: str, of_process: Sequence[Sequence[str]] = ()) -> list[subprocess.Popen]:
    """The processes of a run, which find each other on this machine.

    Args:
        workdir: the run's folder.
        shape: how many.
        flags: in place of `FLAGS`.
        of_process: further flags of each process.
    """
    count = f"--xla_force_host_platform_device_count={shape.devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": count}
    command = [sys.executable, "-m", "experiments.train", "--workdir", str(workdir), *(flags or FLAGS)]
    command += ["--mesh", shape.mesh] if shape.mesh else []
    if shape.processes > 1:
        command += ["--coordinator", f"localhost:{_free_port()}", "--num-processes", str(shape.processes)]
    further = of_process or [()] * shape.processes
    return [
        subprocess.Popen(
            command + (["--process-id", str(index)] if shape.processes > 1 else []) + list(more),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for index, more in enumerate(further)
    ]


def end(processes: Sequence[subprocess.Popen], within: float = 600) -> list[Ended]:
    """Wait for all of them, and see that none leaves a process of its own behind.

    Raises:
        UserError: one does not end within so many seconds.
    """
    latest, ended = time.monotonic() + within, []
    try:
        for process in processes:
            # Whoever holds its standard error is its child: the end of that file is the end of all.
            _, errors = process.communicate(timeout=max(0.1, latest - time.monotonic()))
            ended.append(Ended(process.returncode, errors))
    except subprocess.TimeoutExpired:
        raise UserError(f"process {len(ended)} of {len(processes)} had not ended after {within:.0f} seconds") from None
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGKILL)
    return ended


def finish(workdir: Path, shape: Shape, *flags: str) -> None:
    """Train a run to its end.

    Raises:
        UserError: a process did not end well.
    """
    for number, one in enumerate(end(start(workdir, shape, *flags))):
        if one.code:
            raise UserError(f"{shape}: process {number} ended with code {one.code}: {one.errors[-2000:]}")


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
