"""Break runs on purpose: python -m experiments.measuring.faults --part kills --count 200

kills        SIGKILL, SIGTERM and Ctrl-C at random moments of real training processes, again and again until the run
             ends: is the result the same to the byte as that of a run nobody touched?
corruption   a flipped bit, a cut or a missing file in a run folder or a prepared corpus (`corruption`)
full-disk    a disk that fills up at a random moment: is the last checkpoint intact, and is the end the same?
soak         the quickstart killed and resumed for --minutes: memory, open files and disk after each cycle, and the
             same end every time

The seed decides what is tried; where a signal arrives also depends on the machine. The exit code is 1 if a promise of
docs/reliability.md was broken.
"""

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments import cli
from experiments.measuring.breaking.outcome import compare, outcome
from experiments.measuring.breaking.victim import (
    MOMENTS,
    SIGNALS,
    check_code,
    held,
    hit,
    is_finished,
    place,
    sleep,
    start,
    wait,
    wait_for,
)
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.runs.checkpoint_files import checkpoints


@dataclass(frozen=True)
class Arguments:
    """Break runs on purpose, and see whether they end as runs that nobody touched."""

    part: Literal["kills", "corruption", "full-disk", "soak"] = "kills"
    count: int = 20  # kills, corruption, full-disk: how many faults
    seed: int = 0  # which ones
    minutes: float = 30.0  # soak: how long
    folder: Path | None = None  # where; what is there is used again (default: a temporary folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and inject faults of one kind."""
    arguments = cli.parse(Arguments, argv)
    if arguments.count < 1 or arguments.minutes <= 0:
        raise UsageError(f"--count {arguments.count}, --minutes {arguments.minutes}: must be above 0")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        # Prepared stories, compiled programs and temporary files of their own.
        os.environ |= {"TINYGPT_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
        if arguments.part == "corruption":
            from experiments.measuring.breaking.corruption import corruption

            corruption(folder, arguments.count, arguments.seed)
        else:
            part = {"kills": kills, "full-disk": full_disk, "soak": soak}[arguments.part]
            part(arguments, folder)
    print(f"{(time.monotonic() - begun) / 60:.1f} minutes")


def kills(arguments: Arguments, folder: Path) -> None:
    """Run after run, each hit until it ends. Their workdirs have names with spaces and letters beyond ASCII."""
    expected, chance = whole_run(folder), random.Random(arguments.seed)
    done, runs, sent_counts, places = 0, 0, Counter(), Counter()
    while done < arguments.count:
        runs, hits, code = runs + 1, 0, -1
        workdir = folder / f"run {arguments.seed}.{runs} ü"
        while code != 0 or not is_finished(workdir):
            process, aim, sent = start(workdir), chance.choice(list(MOMENTS)), ""
            if done < arguments.count:
                sent = hit(process, workdir, aim, chance)
            code, errors = wait(process)
            check_code(code, errors, sent, f"run {runs}, after {hits} hits, at {aim}")
            if sent:
                hits, done = hits + 1, done + 1
                sent_counts[sent] += 1
                places[place(workdir, aim)] += code == -signal.SIGKILL
        compare(f"run {runs}", outcome(workdir), expected)
        print(f"run {runs}: hit {hits} times, and its end is the same to the byte", flush=True)
        shutil.rmtree(workdir)
    print(f"{done} hits with seed {arguments.seed} in {runs} runs: {_told(sent_counts)}")
    print(f"killed: {_told(+places)}")


def full_disk(arguments: Arguments, folder: Path) -> None:
    """A small file system in memory where this user may mount one; else a limit on the size of a process's files."""
    expected, chance, tally = whole_run(folder), random.Random(arguments.seed), Counter()
    for number in range(1, arguments.count + 1):
        with _small_disk(folder / "disk") as (disk, leave):
            workdir, process = disk / "run", start(disk / "run")
            wait_for(process, workdir, chance.choice(["start", "update", "save"]), chance)
            leave(process, chance.randrange(1_000_000))
            code, errors = wait(process)
            lines = [line for line in errors.splitlines() if line.startswith("error: ")]
            if code == 0 and is_finished(workdir):
                tally["it fitted"] += 1
            elif code == 1 and len(lines) == 1 and "Traceback" not in errors:
                tally["one line"] += 1
                print(f"full disk {number}: {lines[0].replace(str(disk), 'DISK')}", flush=True)
            else:
                raise UserError(f"full disk {number}: exit code {code}: {errors[-2000:]}")
            if problems := [saved.problem() for saved in checkpoints(workdir) if saved.problem()]:
                raise UserError(f"full disk {number}: {problems[0]}")
            leave(None, 0)
            code, errors = wait(start(workdir))
            check_code(code, errors, "", f"full disk {number}, with room again")
            compare(f"full disk {number}", outcome(workdir), expected)
    print(f"{arguments.count} full disks with seed {arguments.seed}: {_told(tally)}; each run went on to the same end")


def soak(arguments: Arguments, folder: Path) -> None:
    """Cycles of a minute or so, in quickstart runs one after the other, whose ends must be equal.

    What a process holds is read 10 seconds after its first update, and before it is hit.
    """
    chance, end, number = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes, 1
    while time.monotonic() < end:
        while is_finished(workdir := folder / f"soak {number}"):
            number += 1
        begun, process = time.monotonic(), start(workdir, "--preset", "quickstart")
        wait_for(process, workdir, "update", chance)
        sleep(process, 10)
        first = held(process)
        sleep(process, chance.uniform(20, 90))
        last, how = held(process), chance.choice(SIGNALS)
        process.send_signal(how)
        code, errors = wait(process)
        check_code(code, errors, how.name, f"after {how.name}")
        step = checkpoints(workdir)[-1].step if checkpoints(workdir) else 0
        changes = ", ".join(f"{name} {first[name]} then {last[name]}" for name in last)
        disk = {name: _megabytes(place) for name, place in (("run", workdir), ("cache", folder / "cache"))}
        disk |= {"checkpoints": _megabytes(workdir / "checkpoints"), "temporary files": _megabytes(folder / "tmp")}
        sizes = ", ".join(f"{name} {size:.1f} MB" for name, size in disk.items())
        print(f"{time.monotonic() - begun:3.0f} s, {how.name}, step {step:,} saved: {changes}; {sizes}", flush=True)
        if is_finished(workdir):
            compare(f"run {number}", outcome(workdir), outcome(folder / "soak 1"))
            print(f"run {number}: its end is that of the first run, to the byte", flush=True)


def whole_run(folder: Path) -> dict[str, str]:
    """What a run that nobody touches leaves. It also fills the cache."""
    code, errors = wait(start(folder / "whole"))
    check_code(code, errors, "", "the run that nobody touches")
    return outcome(folder / "whole")


@contextlib.contextmanager
def _small_disk(disk: Path) -> Iterator[tuple[Path, Callable[[subprocess.Popen[str] | None, int], None]]]:
    """A folder, and a function of a process and bytes that leaves no more room there than that; of none: all of it."""
    disk.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode == 0:
        try:
            yield disk, lambda process, room: _fill(disk / "ballast", room if process else None)
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
    else:
        yield disk, _limit
    shutil.rmtree(disk)


def _limit(process: subprocess.Popen[str] | None, room: int) -> None:
    if process:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))


def _fill(ballast: Path, room: int | None) -> None:
    ballast.unlink(missing_ok=True)
    while room is not None and (size := shutil.disk_usage(ballast.parent).free - room) > 0:
        with contextlib.suppress(OSError), ballast.open("ab") as file:  # whoever fills it first
            os.posix_fallocate(file.fileno(), file.tell(), size)
            return


def _told(tally: Counter[str]) -> str:
    return ", ".join(f"{times} {what}" for what, times in tally.most_common())


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


if __name__ == "__main__":
    cli.run(main)
