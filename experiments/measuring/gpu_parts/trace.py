"""A trace of JAX's profiler: which kernels ran, how long, and what they belong to in the model."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from experiments.measuring.tables import Table
from tinygpt_jax.cards import Card
from tinygpt_jax.errors import UserError
from tinygpt_jax.estimate import roofline
from tinygpt_jax.estimate.program import read_program
from tinygpt_jax.estimate.traffic import kernels_and_exchanges

_REST = "optimizer"  # what is in no module of the model
_UNKNOWN = "not told"  # which instruction a kernel is of


class Kernel(NamedTuple):
    """One launch."""

    name: str  # of the kernel
    instruction: str  # of the compiled program, "" where the trace does not tell
    start: float  # seconds
    seconds: float


def read_trace(folder: Path) -> list[Kernel]:
    """All launches in a trace, in order: those of a GPU, or where there is none what a CPU did for each instruction.

    Raises:
        UserError: there is nothing.
    """
    from jax.profiler import ProfileData

    planes = [p for file in sorted(folder.rglob("*.xplane.pb")) for p in ProfileData.from_file(str(file)).planes]
    devices = [plane for plane in planes if plane.name.startswith("/device:GPU")]
    kernels = []
    for plane in devices or planes:
        for line in plane.lines:
            if devices and not line.name.startswith("Stream"):  # sums of what the streams did
                continue
            for event in line.events:
                instruction = next((str(value) for name, value in event.stats if name == "hlo_op"), "")
                if devices or instruction:
                    start, seconds = event.start_ns / 1e9, event.duration_ns / 1e9
                    kernels.append(Kernel(event.name, instruction, start, seconds))
    if not kernels:
        raise UserError(f"the trace in {folder} tells of no kernel: may this user read the GPU's counters (CUPTI)?")
    return sorted(kernels, key=lambda kernel: kernel.start)


def op_names(program: str) -> dict[str, str]:
    """Where in the Python program each instruction comes from, by its name and by that of the kernel XLA makes of it.

    Args:
        program: a compiled one, in XLA's text form.
    """
    lines = re.findall(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*\bop_name="([^"]*)"', program, re.MULTILINE)
    return {re.sub(r"\W", "_", name): op_name for name, op_name in lines} | dict(lines)


def place_of(kernel: Kernel, names: Mapping[str, str]) -> tuple[str, str]:
    """The part of the model that a launch belongs to, and its `op_name`."""
    op_name = names.get(kernel.instruction) or names.get(kernel.name, "")
    if not op_name:
        return ("copies" if re.search(r"^Mem|copy", kernel.name) else _UNKNOWN), ""
    return roofline.part_of(op_name, _REST), op_name


def by_part(kernels: Sequence[Kernel], names: Mapping[str, str], updates: int) -> Table:
    """Time of an update by part of the model, the longest first, and the time in which nothing ran."""
    seconds: dict[str, float] = {}
    count: dict[str, int] = {}
    for kernel in kernels:
        part, _ = place_of(kernel, names)
        seconds[part] = seconds.get(part, 0.0) + kernel.seconds
        count[part] = count.get(part, 0) + 1
    busy = _busy(kernels)
    span = max(k.start + k.seconds for k in kernels) - kernels[0].start
    table: Table = {
        part: {
            "ms/update": 1000 * seconds[part] / updates,
            "share": seconds[part] / span,
            "kernels/update": count[part] / updates,
        }
        for part in sorted(seconds, key=lambda part: -seconds[part])
    }
    table["nothing ran"] = {"ms/update": 1000 * (span - busy) / updates, "share": (span - busy) / span}
    table["all"] = {"ms/update": 1000 * span / updates, "share": 1.0, "kernels/update": len(kernels) / updates}
    return table


def longest(kernels: Sequence[Kernel], names: Mapping[str, str], updates: int, most: int) -> Table:
    """The kernels that take most of an update's time; those of all layers are one row."""
    seconds: dict[tuple[str, str, str], list[float]] = {}
    for kernel in kernels:
        part, op_name = place_of(kernel, names)
        name = re.sub(r"[._]?\d+$", "", kernel.name)
        seconds.setdefault((name, part, re.sub(r"blocks_\d+", "blocks_N", op_name)), []).append(kernel.seconds)
    rows = sorted(seconds.items(), key=lambda row: -sum(row[1]))[:most]
    return {
        f"{rank}. {name[:60]}": {
            "ms/update": 1000 * sum(times) / updates,
            "kernels/update": len(times) / updates,
            "us each": 1e6 * sum(times) / len(times),
            "part": part,
            "operation": op_name[-60:],
        }
        for rank, ((name, part, op_name), times) in enumerate(rows, 1)
    }


def beside_the_estimate(measured: Table, program: str, by_hand: Mapping[str, float], card: Card) -> Table:
    """Each part's time beside what the card could do at best, by its rates: see `roofline`.

    Args:
        measured: what `by_part` found.
        program: in XLA's text form.
        by_hand: FLOP of a launch of each Pallas kernel.
        card: which.
    """
    kernels, _ = kernels_and_exchanges(read_program(program), by_hand)
    estimated = roofline.by_part(kernels, card, _REST)
    table: Table = {
        part: {
            "measured, ms": measured[part]["ms/update"] if part in measured else 0.0,
            "at best, ms": 1000 * x.seconds,
        }
        for part, x in estimated.items()
    }
    best = 1000 * sum(x.seconds for x in estimated.values())
    table["all"] = {"measured, ms": measured["all"]["ms/update"], "at best, ms": best}
    return table


def _busy(kernels: Sequence[Kernel]) -> float:
    """Seconds in which at least one of them ran; they are in order."""
    total, end = 0.0, 0.0
    for kernel in kernels:
        total += max(0.0, kernel.start + kernel.seconds - max(end, kernel.start))
        end = max(end, kernel.start + kernel.seconds)
    return total
