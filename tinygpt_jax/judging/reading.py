"""Reading a story as the storyteller's grammar would tell it, one word at a time.

The unit is what GPT-2's tokenizer cuts a text into before it looks for tokens: a word with the space before it, or
punctuation. A text's tokens are those of its pieces, so a distribution of the next piece is one of the next tokens.

Where a piece fits several ways of telling, such as "the" in "[the whole story|the end]", all of them are kept with
their probabilities until a later piece decides. So the probabilities are exact:

    p(piece | what was read) = sum of p(way) over the ways that go on with it / sum of p(way) over all ways
"""

import math
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from tinygpt_jax.data.grammar import STORYTELLER, Grammar, Kind, Place

# r50k_pat_str of tiktoken, in the words of Python's `re`.
PIECE = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+| ?\d+| ?(?:[^\s\w]|_)+|\s+$|\s+(?!\S)|\s")
END = ""  # in place of a piece where the story ends


class Step(NamedTuple):
    """A piece that was read where the grammar allows it."""

    piece: str
    kind: Kind  # what decided its first letter
    possible: dict[str, float]  # the probability of each piece that could have stood here, END among them


@dataclass
class Reading:
    """A text as the grammar reads it, up to its end or to where the grammar could not have gone on with it."""

    steps: list[Step] = field(default_factory=list)
    plot: str = ""  # the story's kind, once it is told
    left: str | None = None  # the first piece that is impossible; END where the text ends and the story does not
    position: int = 0  # where in the text that is
    possible: dict[str, float] = field(default_factory=dict)  # what could have stood there
    kind: Kind = "fixed text"  # what would have decided there

    @property
    def log_p(self) -> float:
        """The log-probability in nats that the grammar tells this text; -inf if it cannot."""
        if self.left is not None:
            return -math.inf
        return math.fsum(math.log(step.possible[step.piece]) for step in self.steps)


class _Way(NamedTuple):
    """A way of telling what was read so far."""

    p: float
    text: str  # what it tells next
    kinds: tuple[Kind, ...]  # what decided each letter of that
    place: Place  # where it goes on after that
    plot: str


class Storyteller:
    """A grammar of the form of `storyteller.toml` as a reader: see the top of this file.

    `plots` are its kinds of story, each with the probability that a story is of it.
    """

    def __init__(self, path: Path = STORYTELLER) -> None:
        told = tomllib.loads(path.read_text(encoding="utf-8"))
        names = re.findall(r"[\[|]\s*\{([A-Z_]+)\}", told["story"])  # the options that begin with a part of their own
        self._openings = {re.split(r"[{\[]", " ".join(told["parts"][name].split()))[0]: name for name in names}
        self._grammar = Grammar.read(path)
        self.plots = dict.fromkeys(names, 0.0)
        for plot, p in self._plots(self._grammar.beginning, 1.0):
            self.plots[plot] += p

    def read(self, text: str, ended: bool = True) -> Reading:
        """Read a text, with the end of the story behind it unless it was cut (`ended` is False)."""
        reading = Reading()
        ways = [_Way(1.0, "", (), self._grammar.beginning, "")]
        pieces = [*PIECE.findall(text), END]
        for piece in pieces:
            going_on = self._next_pieces(ways)
            total = math.fsum(way.p for ways in going_on.values() for way in ways)
            possible = {other: math.fsum(way.p for way in ways) / total for other, ways in going_on.items()}
            if piece not in going_on or (piece == END and not ended):
                likely = max(possible, key=possible.__getitem__)
                reading.left, reading.possible, reading.kind = piece, possible, _kind(likely, going_on)
                break
            reading.steps.append(Step(piece, _kind(piece, going_on), possible))
            reading.position += len(piece)
            ways = [_after(way, len(piece)) for way in going_on[piece]]
            if len({way.plot for way in ways}) == 1:
                reading.plot = ways[0].plot
        return reading

    def _next_pieces(self, ways: list[_Way]) -> dict[str, list[_Way]]:
        """The ways to go on, with the next piece whole in their texts, by that piece."""
        found: dict[str, list[_Way]] = {}
        pending = list(ways)
        while pending:
            way = pending.pop()
            match = PIECE.match(way.text)
            if way.place.node is None or (match and match.end() < len(way.text)):
                found.setdefault(match[0] if match else END, []).append(way)
                continue
            branches = self._grammar.branches(way.place)
            for text, kind, place in branches:
                plot = self._openings.get(text, way.plot)
                kinds = way.kinds + (kind,) * len(text)
                pending.append(_Way(way.p / len(branches), way.text + text, kinds, place, plot))
        return found

    def _plots(self, place: Place, p: float) -> Iterator[tuple[str, float]]:
        """The plots that follow a place, with their probabilities."""
        branches = self._grammar.branches(place)
        if len({branch.place.node for branch in branches}) == 1:  # words, or options without consequences
            yield from self._plots(branches[0].place, p)
            return
        for branch in branches:
            if plot := self._openings.get(branch.text):
                yield plot, p / len(branches)
            else:
                yield from self._plots(branch.place, p / len(branches))


def _kind(piece: str, going_on: dict[str, list[_Way]]) -> Kind:
    """What decided the first letter of a piece; of several possible reasons the likeliest."""
    way = max(going_on[piece], key=lambda way: way.p)
    first = len(piece) - len(piece.lstrip())
    kind = way.kinds[first] if first < len(way.kinds) else "fixed text"
    return "fixed text" if len(going_on) == 1 and kind in ("turn", "new word") else kind  # the rest of a long option


def _after(way: _Way, read: int) -> _Way:
    return way._replace(text=way.text[read:], kinds=way.kinds[read:])
