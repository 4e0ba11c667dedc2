"""How every picture looks: its size, colours, axes, lines and numbers."""

import io
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tinygpt_jax.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe & Ito (2008), distinct for colour-blind readers; the darker one is for text on white.
BLUE, VERMILLION, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7"
DARK_PURPLE, GREY, BLACK = "#A8498A", "#5F5F5F", "#333333"
DASHED = {"color": GREY, "linestyle": (0, (5, 3)), "linewidth": 1.2}  # a line to compare with
TITLE = {"fontweight": "bold", "fontsize": 10.5}

SIZE_PIXELS = (1200, 675)
_DOTS_PER_INCH = 170
_LETTERS = 88  # that fit side by side


@contextmanager
def picture(path: Path, title: str, rows: int = 1, columns: int = 1) -> Iterator[list["Axes"]]:
    """The axes of a picture; with what has been drawn on them at the end it becomes the file, PNG or SVG by its name.

    Lines that have a label are named below the axes, where they hide nothing.

    Raises:
        UserError: `path` cannot be written.
    """
    import_matplotlib()
    from matplotlib.figure import Figure  # not pyplot: no global state, no window system, nothing kept afterwards

    width, height = SIZE_PIXELS
    figure = Figure((width / _DOTS_PER_INCH, height / _DOTS_PER_INCH), dpi=_DOTS_PER_INCH, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", **TITLE)
    panels = figure.subplots(rows, columns, squeeze=False, sharex="col").flatten().tolist()
    yield panels
    for axes in panels:
        _finish(axes)
    named: dict[str, Any] = {}  # a panel need not show all: a short run has no line in one of later steps
    for axes in panels:
        for line, name in zip(*axes.get_legend_handles_labels(), strict=True):
            named.setdefault(name, line)
    if named:
        columns = min(len(named), max(1, _LETTERS // (max(map(len, named)) + 6)))  # 6 for the line before a name
        figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False)
    content = io.BytesIO()
    if path.suffix == ".svg":
        from matplotlib import rc_context

        with rc_context({"svg.hashsalt": path.name}):  # no random names: the same bytes each time
            figure.savefig(content, format="svg", metadata={"Date": None})
    else:
        figure.savefig(content, format="png")
    write_atomically(path, content.getvalue())


def import_matplotlib() -> None:
    """Import matplotlib even where MPLBACKEND names what is not there: it is for windows, and we open none."""
    if "matplotlib" in sys.modules:
        return
    backend = os.environ.pop("MPLBACKEND", None)
    import matplotlib

    if backend is not None:  # for a user's own pyplot
        os.environ["MPLBACKEND"] = backend
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend


def limit_y(axes: "Axes", values: Sequence[float], from_zero: bool = True, share: float = 0.08) -> None:
    """Fix the y axis around the values, with a share of room at either end for a name; from 0 unless logarithmic."""
    low, high = min(values), max(values)
    if axes.get_yscale() == "log":
        room = max((high / low) ** share, 1.03)
        axes.set_ylim(low / room, high * room)
    else:
        low = min(0.0, low) if from_zero else low
        room = share * (high - low) or 1.0
        axes.set_ylim(low if from_zero else low - room, high + room)


def reference_line(axes: "Axes", value: float, name: str, above: bool) -> None:
    """A dashed line at a value, its name at its right end, above or below it."""
    axes.axhline(value, **DASHED)
    offset, side = (3, "bottom") if above else (-3, "top")
    place = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points", "ha": "right", "va": side}
    axes.annotate(name, (1, value), (0, offset), color=GREY, **place)


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


def _finish(axes: "Axes") -> None:
    """The last touches: a quiet grid, and ticks as plain numbers. A matrix in colours needs neither."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

    if axes.images:
        axes.spines[:].set_visible(False)
        return
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.margins(x=0.01)
    if axes.get_xlabel().startswith("step"):
        axes.xaxis.set_major_locator(MaxNLocator(nbins="auto", steps=[1, 2, 2.5, 5, 10], integer=True))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: plain(value))
        if axis.get_scale() == "log":
            low, high = axis.get_view_interval()
            # 1, 2, 5, 10, 20, ... where there is room, else 1, 10, 100; 1, 2, 3, 4, ... where that would be one or two.
            subs = range(1, 10) if high / low < 5 else (1, 2, 5) if high / low < 2000 else (1,)
            axis.set_major_locator(LogLocator(subs=subs))
            axis.set_minor_formatter(NullFormatter())
