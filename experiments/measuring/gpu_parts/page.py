"""The goals for one NVIDIA H100, and everything on one page."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.measuring.gpu_parts.worker import Result
from experiments.measuring.peers import OURS
from experiments.measuring.tables import Table, lines_of
from tinygpt_jax.files import write_atomically
from tinygpt_jax.report import html


class Goal(NamedTuple):
    """A figure that should be reached, and where it is measured."""

    name: str
    goal: float
    more_is_better: bool
    table: str  # its title, or how that begins
    row: str
    column: str


GOALS = (
    Goal("tokens/s at 256 rows an update", 500_000, True, "training, 256", OURS.name, "tokens/s"),
    Goal("times torch.compile, 256 rows", 1.0, True, "training, 256", "PyTorch, compiled", "ours is faster by"),
    Goal("times torch.compile, 32 rows", 1.0, True, "training, 32", "PyTorch, compiled", "ours is faster by"),
    Goal("first update, nothing compiled before, s", 45, False, "startup", OURS.name, "cold, s"),
    Goal("first update, compiled before, s", 10, False, "startup", OURS.name, "warm, s"),
    Goal(
        "times Hugging Face, one text",
        4.0,
        True,
        "decoding",
        "written, 1 side by side: Hugging Face",
        "ours is faster by",
    ),
    Goal("temporary memory at 256 rows, GiB", 11, False, "memory, 256", "XLA's account", "temporary, GiB"),
)
_SAME_BITS = {
    "the same bits twice, with --deterministic": "the same run twice",
    "killed and resumed: the bits of a run that was not": "a run that was killed",
}


def goals(parts: Mapping[str, Result]) -> Table:
    """Each goal beside what was reached; ratio is above 1 where it is met."""
    found = {title: table for result in parts.values() for title, table in result["tables"].items()}
    table: Table = {}
    for goal in GOALS:
        measured = next((rows for title, rows in found.items() if title.startswith(goal.table)), {})
        value = measured.get(goal.row, {}).get(goal.column)
        table[goal.name] = {"goal": goal.goal, "reached": "not measured", "ratio": ""}
        if value is not None:
            value = value[0] if isinstance(value, list | tuple) else value
            ratio = value / goal.goal if goal.more_is_better else goal.goal / value
            table[goal.name] |= {"reached": value, "ratio": ratio}
    for name, beginning in _SAME_BITS.items():
        rows = next((rows for title, rows in found.items() if title.startswith(beginning)), {})
        differing = [row for row, cells in rows.items() if cells["same"] == "NO"]
        reached = f"differ: {', '.join(differing)}" if differing else "yes"
        table[name] = {"goal": "yes", "reached": reached if rows else "not measured", "ratio": ""}
    return table


def seconds_of(parts: Mapping[str, Result]) -> Table:
    """How long each part took, and what went wrong."""
    return {name: {"seconds": part["seconds"], "error": part["error"] or "-"} for name, part in parts.items()}


def write_page(path: Path, report: Mapping[str, Any]) -> None:
    """One page of everything that was found."""
    facts = ", ".join(f"{name} {value}" for name, value in report["machine"].items())
    title = f"Measured on {report['machine'].get('GPU', 'a CPU, in small')}"
    write_atomically(path, html.page(title, f"{report['date']}: {facts}", _sections(report)))


def _sections(report: Mapping[str, Any]) -> Iterator[str]:
    yield _grid("Goals for one NVIDIA H100", report["goals"])
    yield _grid("Parts", seconds_of(report["parts"]))
    for name, part in report["parts"].items():
        yield html.heading(name, part["error"])
        for title, table in part["tables"].items():
            yield _grid(title, table)


def _grid(title: str, table: Table) -> str:
    columns, *rows = lines_of(table)
    return html.grid(title, columns, rows)
