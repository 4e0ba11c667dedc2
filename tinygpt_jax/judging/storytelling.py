"""Stories judged by the grammar of the built-in ones: could it have written them, and are all kinds as frequent?"""

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from tinygpt_jax.judging.figures import Row, Section
from tinygpt_jax.judging.form import sentences
from tinygpt_jax.judging.reading import END, Reading, Storyteller

_NOTES = 12  # departures that are shown
_SHOWN = 6  # words that would have been possible there


def grammar_section(stories: Sequence[tuple[str, bool]], readings: Sequence[Reading]) -> Section:
    """How many stories the grammar could have written, and where the others leave it.

    Args:
        stories: their texts, and whether the model has ended them.
        readings: what the grammar makes of each.
    """
    left = [reading for reading in readings if reading.left is not None]
    words = sum(sum(1 for step in reading.steps if step.piece.strip(" ").isalnum()) for reading in readings)
    inside = 1 - len(left) / len(readings)
    # Of none or all the deviation is 0 and says nothing; 3 in n is the limit at 95 % (Jovanovic & Levy 1997).
    noise, limit = np.sqrt(inside * (1 - inside) / len(readings)), min(1.0, 3 / len(readings))
    rows = [
        Row(
            "in the grammar",
            {
                "figure": inside,
                "noise": f"{noise:.1%}" if noise else f"< {limit:.1%}",
                "of": f"{len(readings)} stories",
            },
            "share",
            "stories that the grammar could have written, from the first word to the end"
            + ("" if noise else f"; the noise is the limit at 95 %: 3 of {len(readings)}"),
        ),
        Row(
            "words before leaving",
            {"figure": words / len(left) if left else None, "of": f"{words:,} words"},
            "number",
            "words that the grammar could have written for each story that leaves it",
        ),
    ]
    for kind, count in Counter(reading.kind for reading in left).most_common():
        means = "of the departures, where the grammar had this to say"
        rows.append(
            Row(f"left at: {kind}", {"figure": count / len(left), "of": f"{len(left)} stories"}, "share", means)
        )
    notes = [
        departure(text, reading)
        for (text, _), reading in zip(stories, readings, strict=True)
        if reading.left is not None
    ]
    return Section(
        "grammar", "stories at temperature 1, read by the grammar of the built-in ones", rows, notes[:_NOTES]
    )


def plot_section(storyteller: Storyteller, readings: Sequence[Reading]) -> Section:
    """How often each kind of story is told, and whether that is as often as it should be.

    The statistic is Pearson's: the sum of (count - expected)^2 / expected over k kinds, which is k - 1 on average, with
    a standard deviation of sqrt(2 (k - 1)), where the kinds are told as often as they should be.
    """
    counts = Counter(reading.plot for reading in readings if reading.plot)
    told, degrees = counts.total(), len(storyteller.plots) - 1
    rows = []
    if told:
        statistic = sum((counts[plot] - told * p) ** 2 / (told * p) for plot, p in storyteller.plots.items())
        cells = {"told": statistic, "expected": float(degrees), "noise": f"{np.sqrt(2 * degrees):.1f}"}
        means = "how far the frequencies are from the expected ones; more than expected + 3 x noise is no chance"
        rows.append(Row("chi-squared", cells, "number", means))
    for plot, p in storyteller.plots.items():
        noise = np.sqrt(p * (1 - p) / told) if told else None
        cells = {"told": counts[plot] / told if told else None, "expected": p}
        cells |= {"noise": None if noise is None else f"{noise:.1%}"}
        rows.append(Row(plot.lower().replace("_", " "), cells, "share", f"stories of this kind, among {told} of any"))
    return Section("kinds of story", "is each kind told as often as the storyteller tells it", rows)


def departure(text: str, reading: Reading) -> str:
    """Where a story leaves the grammar: the sentence up to the word, and what could have stood there."""
    read, told = text[: reading.position], sentences(text[: reading.position])
    is_over = bool(re.search(r"[.!?][\"']*$", read)) or not told
    begun = "" if is_over else told[-1].lstrip()
    wrote = "the end" if reading.left == END else repr((reading.left or "").lstrip())
    likely = sorted(reading.possible, key=lambda piece: -reading.possible[piece])
    possible = ["the end" if piece == END else repr(piece.lstrip()) for piece in likely]
    more = f" or {others} {'other' if others == 1 else 'others'}" if (others := len(possible) - _SHOWN) > 0 else ""
    return f"{begun or (told[-1].lstrip() if told else '')} >> {wrote}; possible: {', '.join(possible[:_SHOWN])}{more}"
