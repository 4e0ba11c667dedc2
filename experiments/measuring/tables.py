"""Turns of contestants, and tables of what was measured."""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

# What a measurement gives: for each row of a table, the value or (median, smallest, largest) of each column.
Spread = tuple[float, float, float]
Table = dict[str, dict[str, float | Spread]]


def take_turns(turns: Mapping[str, Callable[[], float]], repeats: int, uncounted: int = 0) -> dict[str, list[float]]:
    """Let each contestant measure itself once, then each again, and so on; what they found from turn `uncounted` on."""
    found = [{name: turn() for name, turn in turns.items()} for _ in range(uncounted + repeats)]
    return {name: [each[name] for each in found[uncounted:]] for name in turns}


def timed(work: Callable[..., Any], *arguments: Any) -> float:
    """Seconds that it takes."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def spread(values: Iterable[float]) -> Spread:
    """The median, the smallest and the largest."""
    values = list(values)
    return statistics.median(values), min(values), max(values)


def print_table(title: str, table: Table) -> None:
    """Print a title, the names of the columns, and a line for each row."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    lines = [["", *columns], *([name, *(_cell(row[column]) for column in columns)] for name, row in table.items())]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    print(f"\n{title}")
    for name, *cells in lines:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print(name.ljust(widths[0]), *padded, sep="  ")
    sys.stdout.flush()


def _cell(value: float | Spread) -> str:
    """A number with three digits; of three, the second and third are the smallest and largest."""
    if isinstance(value, tuple):
        middle, low, high = map(_cell, value)
        return f"{middle} ({low}-{high})"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
