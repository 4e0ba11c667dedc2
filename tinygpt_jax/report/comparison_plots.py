"""Pictures of several runs: a line for each, of groups their mean, and the band of reference curves behind them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from tinygpt_jax.report import drawing
from tinygpt_jax.report.drawing import figures
from tinygpt_jax.report.reference import Limits
from tinygpt_jax.runs.record import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = (drawing.BLUE, drawing.VERMILLION, drawing.GREEN, drawing.PURPLE, drawing.ORANGE, drawing.BLACK)
_LONGEST = 34  # letters of a group's name in a picture


def group_curves(
    groups: Mapping[str, Sequence[Curve]], bands: Mapping[str, Sequence[Limits]], what: str, unit: str, path: Path
) -> str:
    """Draw the curves of groups of runs, whole and once more without the first tenth of the steps.

    Args:
        groups: name -> the curves of its runs, not empty.
        bands: name -> a band of reference curves.
        what: the values, "training loss".
        unit: of losses theirs, "nats per token"; else nothing.
        path: the file, an SVG or PNG.

    Returns:
        The title, which of losses says which group ends lowest.
    """
    ends = {name: fmean(curve[-1][1] for curve in curves) for name, curves in groups.items()}
    best = min(ends, key=lambda name: ends[name])
    title = what.capitalize()
    if unit:  # a loss
        where = f"lowest for {short(best)}, at" if len(ends) > 1 else "at"
        title += f" ends {where} {figures(ends[best])} {unit}"
    start = max(curve[-1][0] for curves in groups.values() for curve in curves) // 10
    views = {"step": 0, f"step, from {start + 1:,.0f} on": start}
    if all(point[0] > start for curves in groups.values() for curve in curves for point in curve):
        views.popitem()
    with drawing.picture(path, title, columns=len(views)) as panels:
        panels[0].set_ylabel(f"{what} ({unit})" if unit else what)
        for axes, (xlabel, first) in zip(panels, views.items(), strict=True):
            axes.set_xlabel(xlabel)
            values: list[float] = []
            for name, band in bands.items():
                values += _band(axes, [limits for limits in band if limits.step > first], f"band of {name}")
            for number, (name, curves) in enumerate(groups.items()):
                late = [[point for point in curve if point[0] > first] for curve in curves]
                values += _group(
                    axes, [curve for curve in late if curve], number, f"{short(name)} {figures(ends[name])}"
                )
            drawing.limit_y(axes, values, from_zero=axes is panels[0])
    return title


def _band(axes: "Axes", band: Sequence[Limits], name: str) -> list[float]:
    """Fill it, and return its values."""
    steps, low, high = ([limits[i] for limits in band] for i in range(3))
    if band:
        axes.fill_between(steps, low, high, color=drawing.GREY, alpha=0.3, linewidth=0, label=name)
    return [*low, *high]


def _group(axes: "Axes", curves: Sequence[Curve], number: int, name: str) -> list[float]:
    """Draw each run thin and their mean thick, or the only run thick, and return their values."""
    style: dict[str, Any] = {"color": _COLOURS[number % len(_COLOURS)]}
    if number >= len(_COLOURS):
        style["linestyle"] = (0, (4, 1.5))
    if len(curves) > 1:
        for curve in curves:
            axes.plot(*zip(*curve, strict=True), linewidth=0.8, alpha=0.5, **style)
    if mean := mean_curve(curves):
        axes.plot(*zip(*mean, strict=True), label=name, marker="o" if len(mean) <= 20 else "", markersize=3, **style)
    return [value for curve in curves for _, value in curve]


def mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """The mean of several curves, at the steps that all of them have."""
    if not curves:
        return []
    maps = [dict(curve) for curve in curves]
    shared = [step for step, _ in curves[0] if all(step in values for values in maps)]
    return [(step, fmean(values[step] for values in maps)) for step in shared]


def short(name: str) -> str:
    """A name that fits into a picture."""
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST // 2]}…{name[-_LONGEST // 2 + 1 :]}"
