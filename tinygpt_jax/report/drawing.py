"""How every picture looks: its size, colours, axes, numbers, and the labels at the ends of its lines."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tinygpt_jax.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito (2008), distinct for colour-blind readers; the darker two are for text and thin strokes on white.
BLUE, VERMILLION, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7"
DARK_ORANGE, DARK_PURPLE = "#9A6700", "#A8498A"
GREY, BLACK = "#5F5F5F", "#333333"

SIZE_PIXELS = (1200, 675)
_DOTS_PER_INCH = 170
_LABEL_GAP = 0.068  # height of a line of text, as a share of the height of a picture's only axes


def new_figure() -> "Figure":
    """An empty figure. Not pyplot's: no global state, no window system, nothing kept after it is saved."""
    from matplotlib.figure import Figure

    width, height = SIZE_PIXELS
    return Figure((width / _DOTS_PER_INCH, height / _DOTS_PER_INCH), dpi=_DOTS_PER_INCH, layout="constrained")


def save(figure: "Figure", path: Path) -> None:
    """Write the figure as PNG.

    Raises:
        UserError: `path` cannot be written.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_atomically(path, buffer.getvalue())


def finish(axes: "Axes", title: str) -> None:
    """The last touches, once scales and limits are set: the title, a quiet grid, and ticks as plain numbers."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    axes.set_title(title, loc="left", fontweight="bold", fontsize=10.5, pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    if axes.get_xlabel() == "step":
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: plain(value))
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            # 1, 2, 5, 10, 20, ... where there is room, else 1, 10, 100; 1, 2, 3, 4, ... where that would be one or two.
            subs = range(1, 10) if high / low < 5 else (1, 2, 5) if high / low < 2000 else (1,)
            axis.set_major_locator(LogLocator(subs=subs))
            axis.set_minor_formatter(NullFormatter())


def limit_y(axes: "Axes", values: Sequence[float]) -> None:
    """Fix the y axis around the values: from 0 if linear, with a little room beyond either end if logarithmic."""
    low, high = min(values), max(values)
    if axes.get_yscale() == "log":
        room = max((high / low) ** 0.06, 1.1)
        axes.set_ylim(low / room, high * room)
    else:
        axes.set_ylim(min(0.0, low), 1.06 * high or 1.0)


def reference_lines(axes: "Axes", values: Mapping[str, float]) -> list[tuple[float, str, str]]:
    """A dashed line at each value; returns their labels for `label_ends`."""
    for value in values.values():
        axes.axhline(value, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2)
    return [(value, f"{name} {figures(value)}", GREY) for name, value in values.items()]


def label_ends(axes: "Axes", labels: Sequence[tuple[float, str, str]]) -> None:
    """Write each (y value, text, colour) to the right of the axes, moved apart where they would overlap.

    To be called once the limits of the y axis are set.
    """
    to_share = axes.transScale + axes.transLimits  # from data to shares of the axes' height
    ordered = sorted(labels)
    heights: list[float] = []
    for value, _, _ in ordered:
        height = float(to_share.transform((1.0, value))[1])
        heights.append(max(height, heights[-1] + _LABEL_GAP) if heights else height)
    ceiling = 1.0
    for index in reversed(range(len(heights))):
        heights[index] = min(heights[index], ceiling)
        ceiling = heights[index] - _LABEL_GAP
    for height, (_, text, colour) in zip(heights, ordered, strict=True):
        axes.text(1.015, height, text, color=colour, transform=axes.transAxes, va="center", clip_on=False)


def figures(value: float) -> str:
    """About three significant figures: 0.082, 2.04, 18.5, 50,257."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:#.3g}" if value >= 1 else f"{value:.3f}"


def percent(share: float) -> str:
    """A share of 1 as a percentage that is 0 % or 100 % only when exactly so: 0%, 0.3%, 62%, 99.9%."""
    if share in (0, 1):
        return f"{share:.0%}"
    return f"{share:.0%}" if 0.1 <= share < 0.99 else f"{min(max(share, 0.001), 0.999):.1%}"


def plain(value: float) -> str:
    """All that matters of a round number, without exponent: 0.00025, 10, 1,750."""
    if abs(value) >= 1:
        return f"{value:,.10g}"
    return np.format_float_positional(value, precision=3, fractional=False, trim="-")
