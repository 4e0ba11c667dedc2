"""Several runs on one page that holds everything itself: curves, final figures, and what differs in their settings."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinygpt_jax.files import write_atomically
from tinygpt_jax.report import html
from tinygpt_jax.report.comparison import Group, Verdict, differences, figures, problems, remarks, told
from tinygpt_jax.report.comparison_plots import group_curves
from tinygpt_jax.report.reference import CURVES, WINDOW, Reference, comparable
from tinygpt_jax.runs.record import Curve, RunRecord

_CAPTIONS = {
    "loss": f"Mean cross-entropy of the training rows over {WINDOW} updates, with dropout if any.",
    "validation_loss": "Mean cross-entropy of held-out rows, without dropout.",
    "ratio": f"The validation loss over the mean training loss of the {WINDOW} updates before it: above 1 where a "
    "model knows its training stories better than others.",
    "gradient_norm": f"The gradient's global norm before it is clipped, mean of what was logged in {WINDOW} updates.",
}
_BAND = "Grey: where runs of the preset lie that differ from it in their seed only."
_GROUPS = "Thin: each run; thick: the mean of runs that differ in their seed only."
_FEWEST_WINDOWS = 5  # a shorter run is drawn as it was logged


def write_comparison(
    path: Path, groups: Sequence[Group], verdicts: Mapping[str, Verdict], references: Sequence[Reference]
) -> None:
    """Write the page.

    Args:
        path: the file.
        groups: the runs.
        verdicts: what the reference curves say of each run, by its folder.
        references: the reference curves that there are.

    Raises:
        UserError: it cannot be written.
    """
    met = {verdict.reference for verdict in verdicts.values()}
    bands = [reference for reference in references if reference.preset in met]
    runs = sum(len(group.records) for group in groups)
    parts = [
        html.notes([*remarks(groups), *told(verdicts)]),
        html.heading("Figures", "Mean and spread (sample standard deviation) over runs that differ in their seed."),
        html.grid("At the end", *_cells(groups)),
        html.heading("Curves"),
        *_pictures(groups, bands),
        *_differences(groups),
        html.notes(list(problems(groups))),
    ]
    title = " and ".join(group.name for group in groups) if len(groups) < 3 else f"{len(groups)} ways to train"
    write_atomically(path, html.page(title, f"{runs} {'run' if runs == 1 else 'runs'} beside each other", parts))


def _cells(groups: Sequence[Group]) -> tuple[list[str], list[list[str]]]:
    rows = table(groups)
    return ["", *next(iter(rows.values()))], [[name, *cells.values()] for name, cells in rows.items()]


def table(groups: Sequence[Group]) -> dict[str, dict[str, str]]:
    """Each group's figures in words; columns that no group has are left out."""
    found = {group.name: figures(group) for group in groups}
    columns = [name for name in next(iter(found.values())) if any(row[name] is not None for row in found.values())]
    return {name: {column: _words(column, row[column]) for column in columns} for name, row in found.items()}


def _words(column: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, int):
        return f"{value:,}"
    form = {"tokens per second": ",.0f", "accuracy": ".2%"}.get(column, ".4f")
    mean, spread = value
    return f"{mean:{form}}" if spread is None else f"{mean:{form}} ± {spread:{form}}"


def _pictures(groups: Sequence[Group], references: Sequence[Reference]) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        for name, what in CURVES.items():
            curves = {group.name: [_drawn(record, name) for record in group.records.values()] for group in groups}
            curves = {group: [curve for curve in each if curve] for group, each in curves.items()}
            curves = {group: each for group, each in curves.items() if each}
            if not curves:
                continue
            bands = {reference.preset: reference.band(name) for reference in references}
            path, unit = Path(folder) / f"{name}.svg", "nats per token" if name.endswith("loss") else ""
            title = group_curves(curves, bands, what, unit, path)
            several = any(len(group.records) > 1 for group in groups)
            caption = " ".join([_CAPTIONS[name], *([_GROUPS] if several else []), *([_BAND] if bands else [])])
            yield html.picture(path.read_bytes(), title, caption)


def _drawn(record: RunRecord, name: str) -> Curve:
    windows = comparable(record, name)
    return windows if len(windows) >= _FEWEST_WINDOWS or name in ("validation_loss", "ratio") else record.curves[name]


def _differences(groups: Sequence[Group]) -> Iterator[str]:
    if found := differences(groups):
        yield html.heading("What differs in their settings", "All other settings are the same, apart from the seed.")
        columns = ["", *(group.name for group in groups)]
        yield html.grid("Settings", columns, ([name, *each] for name, each in found.items()))
