"""Runs of several processes on this machine's CPU: python -m experiments.measuring.several --part kills --count 20

agreement    20 updates on one device, and on 4 in several shapes: losses, stories, what each device holds
kills        SIGKILL of one of two processes at random moments, and on with 1, 2 or 4 until the end
stops        a signal to one of two processes: do both stop at the same update, saved?
refusals     what cannot be: does every process that ends say why, in one line?

The exit code is 1 if a promise of docs/scaling.md was broken.
"""

import json
import math
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from experiments import cli
from experiments.measuring.breaking.outcome import compare, outcome
from experiments.measuring.breaking.several import LONGEST, STEPS, Shape, end, finish, start
from tinygpt_jax.errors import UserError
from tinygpt_jax.runs.checkpoint_files import checkpoints

ALONE = Shape(1, 1, "data=1")
SHAPES = [
    Shape(processes, 4 // processes, mesh) for processes in (2, 4, 1) for mesh in ("data=4", "data=2,fsdp=2", "fsdp=4")
]
TWO = Shape(2, 1, "data=1,fsdp=2")
_ROUNDING = 1e-5  # relative: losses of 20 updates on other devices
_LATER_ROUNDING = 1e-3  # the same after 60


@dataclass(frozen=True)
class Arguments:
    """Train with several processes, break them, and compare."""

    part: Literal["agreement", "kills", "stops", "refusals"] = "agreement"
    count: int = 20  # kills and stops: how many
    seed: int = 0  # when, and which process


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags and run one part."""
    arguments, begun = cli.parse(Arguments, argv), time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ |= {"TINYGPT_CACHE": str(folder / "cache"), "JAX_PLATFORMS": "cpu"}
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"  # of this process, for `shares_of_state`
        if arguments.part == "agreement":
            agreement(folder)
        elif arguments.part == "refusals":
            refusals(folder)
        else:
            strike = kills if arguments.part == "kills" else stops
            strike(folder, random.Random(arguments.seed), arguments.count)
    print(f"{arguments.part}: as promised; {(time.monotonic() - begun) / 60:.1f} minutes")


def agreement(folder: Path, shapes: Sequence[Shape] = SHAPES) -> None:
    """Compare 20 updates of each shape with those of one device."""
    flags = ("--preset", "quickstart", "--builtin-stories", "2000", "--steps", "20", "--eval-every", "20")
    flags += ("--eval-batches", "4", "--log-every", "1")
    finish(folder / "alone", ALONE, *flags)
    expected = losses(folder / "alone")
    for shape in shapes:
        workdir = folder / str(shape)
        finish(workdir, shape, *flags)
        found = losses(workdir)
        worst = max(abs(a - b) / b for a, b in zip(found, expected, strict=True))
        same = (workdir / "samples.jsonl").read_bytes() == (folder / "alone" / "samples.jsonl").read_bytes()
        print(f"{shape}: losses differ by {worst:.1e} at most; it writes {'the same' if same else 'other'} stories")
        if not worst <= _ROUNDING:
            raise UserError(f"{shape} is not the same run: losses differ by {worst:.1e}")
    shares = shares_of_state(folder / str(shapes[-1]), 4)
    print(f"fsdp=4: each device holds {min(shares):.3f} to {max(shares):.3f} of the state")
    if max(shares) > 0.25 * 1.05:
        raise UserError(f"a device holds {max(shares):.3f} of the state at fsdp=4")


def kills(folder: Path, chance: random.Random, count: int) -> None:
    """Kill one of two processes, as often as asked; go on with two, or with another number of them."""
    finish(folder / "whole", TWO)
    expected, expected_losses, done = outcome(folder / "whole"), losses(folder / "whole"), 0
    others = [ALONE, Shape(4, 1, "data=2,fsdp=2")]
    while done < count:
        workdir, shape, is_same = folder / f"run after {done}", TWO, True
        while True:
            processes, victim = start(workdir, shape), chance.randrange(shape.processes)
            is_struck = done < count and shape.processes > 1
            if is_struck:
                _let_pass(processes, workdir, chance)
                processes[victim].kill()
            struck = time.monotonic()
            ended = end(processes, LONGEST if is_struck else 600)
            for saved in checkpoints(workdir):
                saved.check()
            if not any(one.code for one in ended):
                break
            done += 1
            others_said = [one.said for index, one in enumerate(ended) if index != victim]
            survived = [index for index, one in enumerate(ended) if index != victim and one.code == 0]
            if (survived and not _is_finished(workdir)) or any(len(said) > 1 for said in others_said):
                raise UserError(f"{workdir}: after the kill of process {victim}: {ended}")
            steps = [saved.step for saved in checkpoints(workdir)]
            print(
                f"{shape}: process {victim} killed, the others ended within {time.monotonic() - struck:.0f} s; "
                f"saved: {steps[-1] if steps else 'nothing'}; said: {others_said[0]}",
                flush=True,
            )
            shape = chance.choice([TWO, TWO, *others])
            is_same = is_same and shape == TWO
        if is_same:
            compare(str(workdir), outcome(workdir), expected)
        worst = max(abs(a - b) / b for a, b in zip(losses(workdir), expected_losses, strict=True))
        print(f"{workdir.name}: {'equal to the byte' if is_same else f'losses differ by {worst:.1e} at most'}")
        if not worst <= _LATER_ROUNDING:
            raise UserError(f"{workdir}: losses differ by {worst:.1e}")
        shutil.rmtree(workdir)


def stops(folder: Path, chance: random.Random, count: int) -> None:
    """Send a signal to one of two processes, until the run ends; then begin another."""
    finish(folder / "whole", TWO)
    expected, done, run = outcome(folder / "whole"), 0, 0
    while done < count:
        run += 1
        workdir = folder / f"run {run}"
        while not _is_finished(workdir):
            processes, victim = start(workdir, TWO), chance.randrange(2)
            number = chance.choice([signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
            if done < count:
                _let_pass(processes, workdir, chance, once_training=True)
                processes[victim].send_signal(number)
            ended = end(processes, LONGEST if done < count else 600)
            step = checkpoints(workdir)[-1].step
            if any(one.code for one in ended) and not _is_finished(workdir):  # then a signal kills as ever
                raise UserError(f"{workdir}: after {number.name} to process {victim}: {ended}")
            if done < count:
                codes = " and ".join(str(one.code) for one in ended)
                print(f"{number.name} to process {victim}: ended with {codes}; saved: {step}", flush=True)
            done += 1
        compare(workdir.name, outcome(workdir), expected)
        print(f"{workdir.name}: equal to the byte")


def refusals(folder: Path, only: Sequence[str] = ()) -> None:
    """Start what cannot be: all of it, or what is named."""
    stories = [folder / f"stories {index}.txt" for index in (0, 1)]
    for index, path in enumerate(stories):
        path.write_text("<|endoftext|>".join(f"Tom saw {n} dogs and {index} cats." for n in range(300)))
    each = {
        "mesh": [("--mesh", "data=3")] * 2,
        "batch": [("--batch-size", "15")] * 2,
        "another mesh": [("--mesh", "data=2"), ("--mesh", "fsdp=2")],
        "configuration": [(), ("--learning-rate", "0.1")],
        "stories": [("--data", str(path)) for path in stories],
        "no stories": [("--data", str(folder / "nowhere"))] * 2,
        "no stories in process 1": [("--data", str(stories[0])), ("--data", str(folder / "nowhere"))],
        "workdir": [(), ("--workdir", str(folder / "elsewhere"))],
    }
    for what, flags in [(what, flags) for what, flags in each.items() if what in (only or each)]:
        ended = end(start(folder / what, Shape(2, 1, ""), of_process=flags), LONGEST)
        print(f"{what}:", *(f"\n  {one.code} {' '.join(one.said)}" for one in ended))
        if any(one.code not in (1, 2) or len(one.said) != 1 or "Traceback" in one.errors for one in ended):
            raise UserError(f"{what}: {ended}")


def losses(workdir: Path) -> list[float]:
    """Those of the updates and the evaluations, in their order."""
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [line.get("loss", line.get("validation_loss", math.nan)) for line in lines]


def shares_of_state(workdir: Path, devices: int) -> list[float]:
    """Which share of its newest state each of so many devices along `fsdp` holds, by the arrays' own shards."""
    import jax

    from tinygpt_jax.training.checkpoint import restore_state
    from tinygpt_jax.training.optimizer import make_optimizer
    from tinygpt_jax.training.sharding import make_mesh

    saved = checkpoints(workdir)[-1]
    optimizer, mesh = make_optimizer(saved.config().optimizer, 1), make_mesh(f"fsdp={devices}")
    arrays = jax.tree.leaves(restore_state(saved, optimizer, mesh))
    held = {device: 0 for device in mesh.devices.flat}
    for shard in (shard for array in arrays for shard in array.addressable_shards):
        held[shard.device] += shard.data.nbytes
    return [count / sum(array.nbytes for array in arrays) for count in held.values()]


def _let_pass(processes, workdir: Path, chance: random.Random, once_training: bool = False) -> None:
    """Wait until the processes train, or have saved, or only some seconds; and then a while longer."""
    aim = chance.choice(["line", "save", "save"] if once_training else ["start", "line", "save", "save"])

    def shown() -> int:
        lines = workdir / "metrics.jsonl"
        if aim == "line":
            return lines.stat().st_size if lines.exists() else 0
        return max((saved.step for saved in checkpoints(workdir)), default=0) if aim == "save" else 0

    before, latest = shown(), time.monotonic() + (chance.uniform(0, 8) if aim == "start" else 120)
    while time.monotonic() < latest and shown() <= before and all(one.poll() is None for one in processes):
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 3))


def _is_finished(workdir: Path) -> bool:
    saved = checkpoints(workdir)
    return bool(saved) and saved[-1].step == STEPS


if __name__ == "__main__":
    cli.run(main)
