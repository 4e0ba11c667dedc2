"""Pictures of a run and of its stories, as PNG files.

Each function draws one picture to `path` and returns its title, which says what the picture shows. A `Curve` is a
sequence of (step, value) points, not empty unless said otherwise, with finite values.

Every function raises UserError if `path` cannot be written.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from tinygpt_jax.files import write_atomically
from tinygpt_jax.report import drawing
from tinygpt_jax.report.drawing import figures, percent, plain
from tinygpt_jax.runs.record import Curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def loss_curves(training: Curve, validation: Curve, references: Mapping[str, float], path: Path) -> str:
    """Training and validation loss, with a dashed line at each named reference; all in nats per token.

    One of the two curves may be empty, and so may the references.
    """
    name, curve = ("Validation", validation) if validation else ("Training", training)
    last = curve[-1][1]
    title = f"{name} loss ends at {figures(last)} nats per token"
    if references:
        lowest = min(references, key=lambda reference: references[reference])
        distance = last - references[lowest]
        title += f", {figures(abs(distance))} {'below' if distance < 0 else 'above'} the {lowest}"
    _draw_run(training, validation, references, title, path, ylabel="loss (nats per token)")
    return title


def perplexity_curves(training: Curve, validation: Curve, references: Mapping[str, float], path: Path) -> str:
    """The arguments of `loss_curves` as perplexity, exp(loss), on a log axis: equal distances are equal nats."""
    training, validation = ([(step, math.exp(value)) for step, value in curve] for curve in (training, validation))
    name, curve = ("Validation", validation) if validation else ("Training", training)
    first = min([*training, *validation])[1]
    title = f"{name} perplexity ends at {figures(curve[-1][1])}; the run began at {figures(first)}"
    # exp of the unigram entropy is the perplexity of a unigram model, and so on.
    references = {name.removesuffix(" entropy"): math.exp(value) for name, value in references.items()}
    _draw_run(training, validation, references, title, path, ylabel="perplexity (log scale)", yscale="log")
    return title


def learning_rate_curves(learning_rate: Curve, gradient_norm: Curve, clip_norm: float | None, path: Path) -> str:
    """The learning rate, and below it the gradient's global norm before it is clipped to `clip_norm`, if known."""
    rates, norms = [rate for _, rate in learning_rate], [norm for _, norm in gradient_norm]
    title = f"Learning rate at most {plain(max(rates))}, {plain(rates[-1])} at the end"
    norm_title = "Gradient norm"
    if clip_norm is not None:
        clipped = sum(norm > clip_norm for norm in norms) / len(norms)
        norm_title = f"Gradient clipped in {percent(clipped)} of the logged steps"
    with drawing.picture(path, "", rows=2) as (above, below):
        for axes, text in ((above, title), (below, norm_title)):
            axes.set_title(text, loc="left", **drawing.TITLE)
        _line(above, learning_rate, drawing.GREEN)
        above.set(ylabel="learning rate", ylim=(0, 1.1 * max(rates) or 1))
        _line(below, gradient_norm, drawing.PURPLE, thin=True)
        below.set(xlabel="step", ylabel="gradient norm", yscale="log")
        if clip_norm is not None and min(norms) / 100 < clip_norm < 100 * max(norms):  # one far away flattens the curve
            drawing.reference_line(below, clip_norm, f"clipped at {clip_norm:g}", above=norms[-1] <= clip_norm)
            norms.append(clip_norm)
        drawing.limit_y(below, norms, share=0.18)  # these axes are low
    return f"{title}. {norm_title}"


def comparison_curves(curves: Mapping[str, Curve], floor: float, uniform: float, path: Path) -> str:
    """Two trainings that differ in the loss only: a right one first, then one that cannot report less than `floor`.

    Args:
        curves: name -> (step, reported perplexity), in that order.
        floor: the lowest perplexity that the second can report.
        uniform: the perplexity of a uniform guess, V.
        path: the PNG file.
    """
    (right, right_curve), (wrong, wrong_curve) = curves.items()
    title = f"{wrong.capitalize()} stays above {figures(floor)}; {right} ends at {figures(right_curve[-1][1])}"
    with drawing.picture(path, title) as (axes,):
        axes.set(xlabel="step", ylabel="reported perplexity (log scale)", yscale="log")
        for name, curve, colour in ((wrong, wrong_curve, drawing.VERMILLION), (right, right_curve, drawing.BLUE)):
            _line(axes, curve, colour, f"{name} {figures(curve[-1][1])}")
        drawing.limit_y(axes, [value for _, value in [*right_curve, *wrong_curve]] + [floor, uniform])
        drawing.reference_line(axes, uniform, f"uniform guess {figures(uniform)}", above=True)
        drawing.reference_line(axes, floor, f"lowest possible for {wrong} {figures(floor)}", above=False)
    return title


def story_lengths(
    histogram: Mapping[str, Sequence[int]],
    context_length: int,
    path: Path,
    layout: Literal["padded", "packed"] = "padded",
) -> str:
    """A `length_histogram` with the context length marked; what is longer is cut where rows are `padded`."""
    edges, counts = np.asarray(histogram["edges"]), np.asarray(histogram["counts"])
    beyond = edges[:-1] > context_length
    share = counts[beyond].sum() / counts.sum()
    if share == 0:
        title = f"Every story fits into the context of {context_length:,} tokens"
    elif layout == "padded":
        title = f"{percent(share)} of the stories are cut at {context_length:,} tokens"
    else:
        title = f"{percent(share)} of the stories are longer than a row of {context_length:,}; packed, none is cut"
    width, sides = edges[1] - edges[0], edges - 0.5  # a bin's lengths are whole numbers: it ends between two
    with drawing.picture(path, title) as (axes,):
        axes.set(xlabel="story length (tokens)", ylabel="stories")
        colours = np.where(beyond & (layout == "padded"), drawing.VERMILLION, drawing.BLUE)
        axes.bar(sides[:-1], counts, width, align="edge", color=colours, edgecolor="white", linewidth=0.5)
        axes.margins(y=0.12)
        if edges[-1] - edges[-2] != width:
            tail = f"{edges[-2]:,} to {edges[-1] - 1:,}"
            axes.annotate(tail, (sides[-2] + width, counts[-1]), (0, 4), textcoords="offset points", ha="right")
        if context_length <= 1.5 * edges[-2]:
            axes.axvline(context_length + 0.5, label=f"context length {context_length:,}", **drawing.DASHED)
    return title


def token_ranks(counts: np.ndarray, path: Path) -> str:
    """How often each token occurs, from the most to the least frequent. `counts` is [vocab_size], not all zero."""
    present = np.sort(counts[counts > 0])[::-1]
    ranks = np.arange(1, len(present) + 1)
    top = min(100, len(present))
    share = percent(present[:top].sum() / present.sum())
    title = f"The {top} most frequent of {len(present):,} tokens make up {share} of the text"
    with drawing.picture(path, title) as (axes,):
        axes.set(xlabel="rank of the token (log scale)", ylabel="occurrences (log scale)", xscale="log", yscale="log")
        zipf = present[0] / ranks
        axes.plot(ranks, zipf, label="Zipf's law: 1 / rank", **drawing.DASHED)
        _line(axes, list(zip(ranks.tolist(), present.tolist(), strict=True)), drawing.BLUE, "tokens")
        drawing.limit_y(axes, [present[0], present[-1], zipf[-1]])
    return title


def word_cloud(words: Mapping[str, int], path: Path) -> str:
    """Words (word -> occurrences, not empty), larger the more frequent, without those that all English is full of."""
    drawing.import_matplotlib()  # which wordcloud imports
    from wordcloud import STOPWORDS, WordCloud

    telling = {word: count for word, count in words.items() if word.lower() not in STOPWORDS} or dict(words)
    ranked = sorted(telling, key=lambda word: (-telling[word], word))
    palette = (drawing.BLUE, drawing.VERMILLION, drawing.GREEN, drawing.DARK_PURPLE, drawing.BLACK)
    colours = {word: palette[rank % len(palette)] for rank, word in enumerate(ranked)}
    width, height = drawing.SIZE_PIXELS
    cloud = WordCloud(
        width=width,
        height=height,
        background_color="white",
        prefer_horizontal=1.0,
        margin=6,
        max_words=150,
        color_func=lambda word, **_: colours[word],
        random_state=0,
    ).generate_from_frequencies(telling)
    buffer = io.BytesIO()
    cloud.to_image().save(buffer, format="PNG", optimize=True)
    write_atomically(path, buffer.getvalue())
    return f"The words that stand out: {', '.join(ranked[:5])}"


def _draw_run(
    training: Curve,
    validation: Curve,
    references: Mapping[str, float],
    title: str,
    path: Path,
    ylabel: str,
    yscale: Literal["linear", "log"] = "linear",
) -> None:
    """Both curves with the reference lines; and once more, larger, without the first tenth of the steps.

    A loss falls from ln V to near its end in that tenth, and what it does then would look flat beside the fall.
    """
    start = max(step for step, _ in [*training, *validation]) // 10
    late = [[point for point in curve if point[0] > start] for curve in (training, validation)]
    views = {"step": [training, validation], f"step, from {start + 1:,} on": late}
    if late == views["step"]:
        views.popitem()
    with drawing.picture(path, title, columns=len(views)) as panels:
        panels[0].set_ylabel(ylabel)
        for axes, (xlabel, (training, validation)) in zip(panels, views.items(), strict=True):
            axes.set(xlabel=xlabel, yscale=yscale)
            if training:  # thin, so that the noise of thousands of points does not hide the validation loss
                _line(axes, training, drawing.ORANGE, f"training {figures(training[-1][1])}", thin=True)
            if validation:
                dots = len(validation) <= 40
                _line(axes, validation, drawing.BLUE, f"validation {figures(validation[-1][1])}", dots=dots)
            values = [value for _, value in [*training, *validation]]
            if axes is not panels[0]:  # a reference far away would flatten the curves
                high, low = max(values), min(values)
                references = {name: value for name, value in references.items() if 2 * low - high <= value <= high}
            for name, value in references.items():
                drawing.reference_line(axes, value, f"{name} {figures(value)}", above=value > values[-1])
            drawing.limit_y(axes, [*values, *references.values()], from_zero=axes is panels[0])


def _line(axes: "Axes", curve: Curve, colour: str, name: str = "", thin: bool = False, dots: bool = False) -> None:
    steps, values = zip(*curve, strict=True)
    marker = "o" if dots or len(curve) == 1 else ""  # a line through one point cannot be seen
    axes.plot(steps, values, color=colour, label=name, linewidth=1.2 if thin else 2.0, marker=marker, markersize=4)
