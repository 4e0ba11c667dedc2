"""Pictures of what is inside a model, as PNG files: matrices in colours. As in `plots`, each returns its title.

Every function raises UserError if `path` cannot be written.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from tinygpt_jax.report import drawing
from tinygpt_jax.report.drawing import percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SIGNED, _POSITIVE = "RdBu_r", "Blues"  # blue below 0, white, red above; from white on


def position_encodings(encoding: Float[np.ndarray, "t d"], path: Path) -> str:
    """A row of colours for each position, such as `functional.sinusoidal_encoding` gives, from -1 to 1."""
    length, d_model = encoding.shape
    title = f"{length} positions, each with a pattern of its own in {d_model} features"
    with drawing.picture(path, title) as (axes,):
        axes.set(xlabel="feature", ylabel="position")
        _draw(axes, encoding, _SIGNED, (-1, 1))
        _add_scale(axes)
    return title


def attention_step(
    tokens: Sequence[str], scores: Float[np.ndarray, "t t"], weights: Float[np.ndarray, "t t"], path: Path
) -> str:
    """One head's scores of every pair, and the weights that mask and softmax make of them; blank is masked.

    Args:
        tokens: the text of each; queries are rows and keys are columns.
        scores: before the mask.
        weights: each row adds up to 1; what no query may look at is 0.
        path: the PNG file.
    """
    title = f"Of {scores.size} scores the mask leaves {np.tri(len(tokens)).sum():.0f}; each row of weights adds up to 1"
    bound = np.abs(scores).max()
    with drawing.picture(path, title, columns=2) as (left, right):
        left.set_title("scores", fontsize=9)
        right.set_title("weights", fontsize=9)
        _draw(left, scores, _SIGNED, (-bound, bound))
        _draw(right, _visible(weights), _POSITIVE, (0, weights.max()))
        for axes in (left, right):
            _add_scale(axes)
            _name_tokens(axes, tokens, queries=axes is left)
    return title


def attention_heads(tokens: Sequence[str], heads: Mapping[str, Float[np.ndarray, "t t"]], path: Path) -> str:
    """The weights of some heads side by side, on one scale from 0 to 1; the title is the strongest look back.

    Args:
        tokens: the text of each; queries are rows and keys are columns. At least three.
        heads: name -> weights, each row of which adds up to 1. Not empty.
        path: the PNG file.
    """
    # A token's look at itself, and at the first, where heads that have nothing to do rest, is no news.
    back = {name: np.tril(weights, -1)[:, 1:] for name, weights in heads.items()}
    strongest = max(back, key=lambda name: back[name].max())
    query, key = divmod(int(back[strongest].argmax()), len(tokens) - 1)
    looking, seen = tokens[query].strip(), tokens[key + 1].strip()
    title = f"{strongest}: “{looking}” looks back at “{seen}” with {percent(back[strongest].max())}"
    with drawing.picture(path, title, columns=len(heads)) as panels:
        for axes, (head, weights) in zip(panels, heads.items(), strict=True):
            axes.set_title(head, fontsize=9)
            _draw(axes, _visible(weights), _POSITIVE, (0, 1))
            _name_tokens(axes, tokens, queries=axes is panels[0])
        _add_scale(*panels)
    return title


def _draw(axes: "Axes", matrix: np.ndarray, colours: str, limits: tuple[float, float]) -> None:
    low, high = limits
    axes.imshow(matrix, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="nearest")


def _visible(weights: np.ndarray) -> np.ndarray:
    """Blank where the mask is: a weight of 0 that was no choice."""
    return np.where(np.tri(len(weights), dtype=bool), weights, np.nan)


def _add_scale(*panels: "Axes") -> None:
    figure: Any = panels[0].figure
    bar = figure.colorbar(panels[0].images[0], ax=panels, fraction=0.05, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7)


def _name_tokens(axes: "Axes", tokens: Sequence[str], queries: bool) -> None:
    """The keys' texts above the columns, and the queries' before the rows. What is in them is no formula."""
    names = [token.strip() or repr(token)[1:-1] for token in tokens]
    places = range(len(names))
    axes.set_xticks(places, names, rotation=90, fontsize=7, parse_math=False)
    axes.set_yticks(places, names if queries else [""] * len(names), fontsize=7, parse_math=False)
    axes.tick_params(length=0)
