"""How much of the stories that a model writes stands in the stories that it was trained on."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int, Integer

from tinygpt_jax.judging.figures import Row, Section
from tinygpt_jax.judging.ngrams import Stories, match_lengths

LENGTHS = (5, 8, 13)


def memorisation_section(corpus: Integer[np.ndarray, " t"], columns: Mapping[str, Stories]) -> Section:
    """Shares of n-grams found in the corpus, and the longest runs, of some sets of stories.

    Args:
        corpus: tokens of the training stories, an end-of-text behind each.
        columns: the tokens of the stories of each column, without their end-of-text.
    """
    stories = [story for column in columns.values() for story in column]
    found = match_lengths(corpus, stories, *LENGTHS[:2])
    ends = np.cumsum([len(column) for column in columns.values()])
    of_column = {name: found[end - len(columns[name]) : end] for name, end in zip(columns, ends, strict=True)}
    rows = []
    for n in LENGTHS:
        cells = {name: _share(lengths, n) for name, lengths in of_column.items()}
        rows.append(Row(f"{n}-grams", cells, "share", f"runs of {n} tokens that stand so in a training story"))
    longest = {name: [int(lengths.max(initial=0)) for lengths in found] for name, found in of_column.items()}
    whole = {
        name: float(np.mean([most == len(story) > 0 for most, story in zip(longest[name], columns[name], strict=True)]))
        for name in columns
    }
    spans = {name: float(max(lengths)) for name, lengths in longest.items()}
    middle = {name: float(np.median(lengths)) for name, lengths in longest.items()}
    rows += [
        Row("longest span", spans, "count", "tokens of the longest run of any story that stands in a training story"),
        Row("its median", middle, "count", "the same of each story, half of them less, half more"),
        Row(
            "whole stories",
            whole,
            "share",
            "stories, short ones mostly, that stand in a training story from first token to last",
        ),
    ]
    about = "what stands in the training stories, of stories that the model wrote and of held-out ones"
    return Section("memorisation", about, rows)


def _share(lengths: list[Int[np.ndarray, " length"]], n: int) -> float | None:
    """The share of n-grams that were found, over all stories; None where no story is so long."""
    found = np.concatenate([row[: max(0, len(row) - n + 1)] >= n for row in lengths])
    return float(found.mean()) if len(found) else None
