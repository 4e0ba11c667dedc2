"""Turns of contestants, and tables of what was measured."""

import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

# What a measurement gives: for each row of a table, the value, (median, smallest, largest) or words of each column.
Spread = tuple[float, float, float]
Cell = float | Spread | str
Table = dict[str, dict[str, Cell]]

_WIDEST = 100  # letters of a cell that is printed


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
    """Print a title, the names of the columns, and a line for each row; of long words the beginning."""
    lines = [
        [cell if len(cell) <= _WIDEST else f"{cell[: _WIDEST - 3]}..." for cell in cells] for cells in lines_of(table)
    ]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    print(f"\n{title}")
    for name, *cells in lines:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        print(name.ljust(widths[0]), *padded, sep="  ")
    sys.stdout.flush()


def lines_of(table: Table) -> list[list[str]]:
    """The table in words: the names of the columns, then each row's name and its cells."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    return [
        ["", *columns],
        *([name, *(_words(row.get(column, "")) for column in columns)] for name, row in table.items()),
    ]


def _words(value: Cell) -> str:
    """A number with three digits; of three, the second and third are the smallest and largest."""
    if isinstance(value, str):
        return value
    if isinstance(value, Sequence):  # a tuple, which JSON gives back as a list
        middle, low, high = map(_words, value)
        return f"{middle} ({low}-{high})"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
