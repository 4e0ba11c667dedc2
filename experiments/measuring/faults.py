"""Break runs on purpose: python -m experiments.measuring.faults --part kills --count 200

kills        SIGKILL, SIGTERM, Ctrl-C and a full disk at random moments of real training processes, again and again
             until the run ends: are all checkpoints whole, and is its end that of a run nobody touched, to the byte?
corruption   a flipped bit, a cut or a missing file in a run folder or a prepared corpus (`corruption`)

The seed decides what is tried; where a signal arrives also depends on the machine. The exit code is 1 if a promise of
docs/reliability.md was broken.
"""

import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments import cli
from experiments.measuring.breaking.outcome import compare, outcome
from experiments.measuring.breaking.victim import MOMENTS, TINY, check_end, hit, is_finished, place, start, wait
from tinygpt_jax.errors import UsageError
from tinygpt_jax.runs.checkpoint_files import checkpoints


@dataclass(frozen=True)
class Arguments:
    """Break runs on purpose, and see whether they end as runs that nobody touched."""

    part: Literal["kills", "corruption"] = "kills"
    count: int = 20  # how many faults
    seed: int = 0  # which ones
    model: Literal["tiny", "quickstart"] = "tiny"  # kills: what is trained
    folder: Path | None = None  # where; what is there is used again (default: a temporary folder)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and inject faults of one kind."""
    arguments = cli.parse(Arguments, argv)
    if arguments.count < 1:
        raise UsageError(f"--count {arguments.count}: must be at least 1")
    begun, chance = time.monotonic(), random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        # Prepared stories, compiled programs and temporary files of their own.
        os.environ |= {"TINYGPT_CACHE": str(folder / "cache"), "TMPDIR": str(folder / "tmp")}
        if arguments.part == "corruption":
            from experiments.measuring.breaking.corruption import corruption

            tally = corruption(folder, chance, arguments.count)
        else:
            flags = TINY if arguments.model == "tiny" else ["--preset", arguments.model]
            tally = kills(folder, chance, arguments.count, flags)
    told = ", ".join(f"{times} {what}" for what, times in tally.most_common())
    print(f"{arguments.count} faults with seed {arguments.seed}: {told}; {(time.monotonic() - begun) / 60:.1f} minutes")


def kills(folder: Path, chance: random.Random, count: int, flags: Sequence[str]) -> Counter[str]:
    """Run after run, each hit until it ends. Their workdirs have names with spaces and letters beyond ASCII."""
    check_end(*wait(start(folder / "whole", *flags)), "", "the run that nobody touches")  # it also fills the cache
    expected, tally, done, runs = outcome(folder / "whole"), Counter(), 0, 0
    while done < count:
        runs, hits, code = runs + 1, 0, -1
        workdir = folder / f"run {runs} ü"
        while code != 0 or not is_finished(workdir):
            process, aim = start(workdir, *flags), chance.choice(list(MOMENTS))
            how, held = hit(process, workdir, aim, chance) if done < count else ("", "")
            code, errors = wait(process)
            check_end(code, errors, how, f"run {runs}, after {hits} hits, at {aim}")
            for saved in checkpoints(workdir):
                saved.check()
            if how:
                hits, done = hits + 1, done + 1
                tally[how] += 1
                tally[f"killed at {aim if aim == 'start' else place(workdir)}"] += code == -signal.SIGKILL
                said = [line for line in errors.splitlines() if line.startswith("error: ")]
                print(f"{how} at {aim}: exit code {code}", *said, f"it held {held}", sep="; ", flush=True)
        compare(f"run {runs}", outcome(workdir), expected)
        print(f"run {runs}: hit {hits} times, and its end is the same to the byte", flush=True)
        shutil.rmtree(workdir)
    return +tally


if __name__ == "__main__":
    cli.run(main)
