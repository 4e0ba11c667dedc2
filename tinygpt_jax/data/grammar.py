"""The built-in storyteller: a probabilistic grammar that knows the exact probability of every story.

A `Grammar` is a template and the words of its slots:

    There was a [big|small] {color} {toy}. [The {toy} was lost.|Everybody loved the {toy}.]

Each option of a bracket is equally likely. A slot's first mention takes one of its words, each equally likely;
later mentions repeat it. So a story is a walk through choices, and its probability is the product of
1 / (number of alternatives) over the choices met.

No two walks tell the same story, because at every choice no alternative is a prefix of another: a reader of the
text sees which one was taken. An option is recognised by the text before its first slot or bracket, so it must
start with text of its own. `Grammar` refuses a template or a word list that breaks this rule. The built-in one
is `storyteller.toml`.
"""

import functools
import hashlib
import itertools
import math
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

STORYTELLER = Path(__file__).with_name("storyteller.toml")

# The words of each slot, separated by ", ". A sequence is another slot and, for each word of that, what goes with it.
WordLists = Mapping[str, str | Sequence[str]]


def write_stories(count: int, seed: int, start: int = 0) -> Iterator[tuple[str, float]]:
    """Yield `count` stories as (text, log-probability in nats); story i depends only on (seed, start + i)."""
    grammar = _builtin()
    for index in range(start, start + count):
        yield grammar.write(seed, index)


def log_probability(text: str) -> float:
    """The log-probability in nats that the storyteller writes exactly this text; -inf if it never does."""
    return _builtin().log_probability(text)


@functools.cache
def _builtin() -> "Grammar":
    return Grammar.read(STORYTELLER)


def read_template(path: Path) -> tuple[str, WordLists]:
    """The template and the words of a file of the form of `storyteller.toml`."""
    told = tomllib.loads(path.read_text(encoding="utf-8"))
    story = re.sub(r"\{([A-Z_]+)\}", lambda name: told["parts"][name[1]], told["story"])
    return " ".join(story.split()), told["words"]


class Grammar:
    """A template whose every text has one derivation (see the top of this file).

    Raises:
        ValueError: the template is malformed, or some text would have two derivations.
    """

    def __init__(self, template: str, words: WordLists):
        self._words = {slot: _Words(slot, words) for slot in words}
        self._start = _link(_parse(template), None)

    @classmethod
    def read(cls, path: Path) -> "Grammar":
        """The grammar of a file of the form of `storyteller.toml`."""
        return cls(*read_template(path))

    def write(self, seed: int, index: int) -> tuple[str, float]:
        """Story number `index` of the sequence `seed`, and its log-probability in nats."""
        # The digits of one 512-bit number in mixed radix are the choices. A story uses up some 80 bits, so they
        # are uniform to within 2^-400, and hashing makes them the same on every machine and Python version.
        number = int.from_bytes(hashlib.blake2b(f"{seed} {index}".encode()).digest(), "little")

        def choose(alternatives: Sequence[str]) -> int:
            nonlocal number
            number, choice = divmod(number, len(alternatives))
            return choice

        return self.walk(choose)

    def log_probability(self, text: str) -> float:
        """The log-probability in nats of writing exactly `text`; -inf if it is not in the language."""
        position = 0

        def recognise(alternatives: Sequence[str]) -> int:
            nonlocal position
            for choice, words in enumerate(alternatives):
                if text.startswith(words, position):
                    position += len(words)
                    return choice
            raise _NotInLanguage

        try:
            _, log_p = self.walk(recognise)
        except _NotInLanguage:
            return -math.inf
        return log_p if position == len(text) else -math.inf

    def walk(self, choose: Callable[[Sequence[str]], int]) -> tuple[str, float]:
        """Derive one story: `choose` gets the alternatives at each point, often a single one, and picks an index.

        Returns:
            The text, and the log-probability in nats that uniform choices lead to it.
        """
        node, said, story, log_p = self._start, {}, [], 0.0
        while node is not None:
            if isinstance(node, _Fork):
                alternatives = node.texts
            elif node.slot in said:
                alternatives = (said[node.slot],)
            else:
                alternatives = self._words[node.slot].given(said)
            choice = choose(alternatives)
            story.append(alternatives[choice])
            log_p -= math.log(len(alternatives))
            if isinstance(node, _Fork):
                node = node.following[choice]
            else:
                said[node.slot] = alternatives[choice]
                node = node.following
        return "".join(story), log_p


class _NotInLanguage(Exception):
    """The text being recognised follows none of the alternatives."""


@dataclass(frozen=True, eq=False)
class _Fork:
    """A place in the template where the story goes on with one of `texts`, each leading to its own next place."""

    texts: tuple[str, ...]
    following: tuple["_Node", ...]

    def __post_init__(self) -> None:
        _check_prefix_free(self.texts)


@dataclass(frozen=True, eq=False)
class _Slot:
    """A place in the template where the story goes on with the word of `slot`."""

    slot: str
    following: "_Node"


_Node = _Fork | _Slot | None  # None is the end of the story


class _Words:
    """The words of one slot, which may depend on the word another slot has got."""

    def __init__(self, slot: str, lists: WordLists):
        spec = lists[slot]
        self._parent, *texts = ("", spec) if isinstance(spec, str) else spec
        parent_spec = lists[self._parent] if self._parent else ""
        if not isinstance(parent_spec, str):
            raise ValueError(f"slot {slot!r} depends on {self._parent!r}, which itself depends on another slot")
        keyed = zip(parent_spec.split(", "), texts, strict=True)
        self._words = {word: tuple(text.split(", ")) for word, text in keyed}
        for words in self._words.values():
            _check_prefix_free(words)
        counts = {len(words) for words in self._words.values()}
        if len(counts) > 1:
            raise ValueError(f"the word lists of slot {slot!r} must be equally long, not {sorted(counts)}")
        self.count = counts.pop()

    def given(self, said: Mapping[str, str]) -> tuple[str, ...]:
        return self._words[said[self._parent] if self._parent else ""]


def _check_prefix_free(texts: Sequence[str]) -> None:
    # In sorted order everything that begins with a text follows it at once.
    for one, other in itertools.pairwise(sorted(texts)):
        if other.startswith(one):
            raise ValueError(f"ambiguous: a choice between {one!r} and {other!r}")


def _parse(template: str) -> list:
    """The template as a list of literal texts, `{slot}`s, and brackets as lists of such lists."""
    tokens = re.findall(r"[\[\]|]|\{\w+\}|[^\[\]|{}]+", template)
    if "".join(tokens) != template:
        raise ValueError("a brace that does not enclose a slot's name")
    tokens = iter([*tokens, "]"])

    def options() -> list[list]:
        found = [[]]
        for token in tokens:
            if token == "]":
                return found
            if token == "|":
                found.append([])
            else:
                found[-1].append(options() if token == "[" else token)
        raise ValueError("a bracket that is not closed")

    whole = options()
    if len(whole) > 1 or next(tokens, None) is not None:
        raise ValueError("a | or ] outside of brackets")
    return whole[0]


def _link(items: list, following: _Node) -> _Node:
    """The graph that tells `items` and goes on at `following`."""
    for item in reversed(items):
        if isinstance(item, list):
            if not all(option and isinstance(option[0], str) and option[0][0] != "{" for option in item):
                raise ValueError(f"each option must start with text of its own: {item}")
            openings = tuple(option[0] for option in item)
            following = _Fork(openings, tuple(_link(option[1:], following) for option in item))
        elif item[0] == "{":
            following = _Slot(item[1:-1], following)
        else:
            following = _Fork((item,), (following,))
    return following
