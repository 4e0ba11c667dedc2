import functools
import hashlib
import itertools
import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterator

import numpy as np
import pytest

from tinygpt_jax.data import grammar
from tinygpt_jax.data.grammar import Grammar, log_probability, write_stories
from tinygpt_jax.tokenizer import gpt2

# Slots that depend on others, a slot filled in one option only, a nested bracket, and options that begin alike.
SMALL = Grammar(
    "A [tall|small {coat}] {kind} named {name} [sang|sat down[ alone| with a {coat} friend]]. {He} smiled, {name}!",
    {
        "kind": "cat, cow, hen",
        "coat": "red, gray",
        "name": ("kind", "Tom, Tim", "Bo, Mo", "Ann, Amy"),
        "He": ("kind", "He", "It", "She"),
    },
)


@pytest.fixture(scope="module")
def stories() -> list[tuple[str, float]]:
    return list(write_stories(20_000, seed=1))


BUILTIN = Grammar.read(grammar.STORYTELLER)
TOLD = tomllib.loads(grammar.STORYTELLER.read_text(encoding="utf-8"))
WORDS, PARTS = TOLD["words"], TOLD["parts"]


def size(language: Grammar) -> tuple[int, float]:
    """The number of different stories and their entropy in nats, by recursion from the last word back."""

    @functools.cache
    def rest(node, said: frozenset[str]) -> tuple[int, float]:
        """How many ways there are from `node` to the end when the slots in `said` are filled; their entropy."""
        if node is None:
            return 1, 0.0
        if isinstance(node, grammar._Fork):
            counts, entropies = zip(*(rest(after, said) for after in node.following), strict=True)
            return sum(counts), math.log(len(counts)) + sum(entropies) / len(counts)
        count, entropy = rest(node.following, said | {node.slot})
        n = 1 if node.slot in said else language._words[node.slot].count
        return n * count, math.log(n) + entropy

    return rest(language._start, frozenset())


def every_story(language: Grammar) -> Iterator[tuple[str, float]]:
    """All walks, in the order of an odometer whose last wheel turns first."""
    wheels: list[list[int]] = []  # [choice, number of alternatives] at each point of the walk
    while True:
        points = itertools.count()

        def choose(alternatives, points=points):
            point = next(points)
            if point == len(wheels):
                wheels.append([0, len(alternatives)])
            return wheels[point][0]

        yield language.walk(choose)
        while wheels and wheels[-1][0] == wheels[-1][1] - 1:
            wheels.pop()
        if not wheels:
            return
        wheels[-1][0] += 1


def shortened(plot: str) -> Grammar:
    """A plot with one word in each slot and two options in each bracket: few enough stories to list."""
    template = re.sub(r"\[([^]|]*\|[^]|]*)\|[^]]*\]", r"[\1]", " ".join(f"A {{child}} and a {{animal}} {plot}".split()))
    words = {
        slot: spec.split(",")[0] if isinstance(spec, str) else (spec[0], spec[1].split(",")[0])
        for slot, spec in WORDS.items()
    }
    return Grammar(template, words)


# --- probabilities


@pytest.mark.parametrize("language", [SMALL, *(shortened(PARTS[plot]) for plot in ("LUNCH", "SEED", "WISH"))])
def test_probabilities_of_all_stories_sum_to_one(language):
    """A wrong probability, two walks to one text, a wrong count or entropy: nothing is sampled here."""
    listed = list(every_story(language))
    texts, log_p = zip(*listed, strict=True)
    assert len(set(texts)) == len(listed) == size(language)[0] > 50
    assert math.fsum(map(math.exp, log_p)) == pytest.approx(1, abs=1e-12)
    assert -math.fsum(p * math.exp(p) for p in log_p) == pytest.approx(size(language)[1], rel=1e-12)
    assert all(language.log_probability(text) == p for text, p in listed)


def test_mean_of_minus_log_p_is_the_entropy(stories):
    """The recursion weighs options by their stories instead of equally, or the writer does not draw what it says."""
    surprise = -np.array([log_p for _, log_p in stories])
    error = surprise.std() / math.sqrt(len(stories))
    assert 0.001 < error < 0.1
    assert abs(surprise.mean() - size(BUILTIN)[1]) < 4 * error


@pytest.mark.parametrize(
    ("pair", "cells"),
    [(r"named (\w+) .*? On(?:e| a) (\w+)", 32 * 14), (r" On(?:e| a) (\w+) .* dreamed of (\w+)\.$", 14 * 16)],
)
def test_choices_are_uniform_and_independent(stories, pair, cells):
    """A digit of the number used twice, or a number too short for the last choices of a long story."""
    counts = Counter(match.groups() for text, _ in stories if (match := re.search(pair, text)))
    expected = counts.total() / cells
    assert expected > 40
    chi_squared = sum((n - expected) ** 2 / expected for n in counts.values()) + (cells - len(counts)) * expected
    assert abs(chi_squared - cells) < 6 * math.sqrt(2 * cells)


def test_log_probability_reads_what_was_written(stories):
    """A reader and a writer that disagree, or a reader that accepts what is never written."""
    for text, log_p in stories[:500]:
        assert log_probability(text) == log_p
        altered = [
            text[:-1],
            text + " ",
            text[1:],
            text.replace("girl", "boy", 1) if "girl" in text else text.replace("boy", "girl", 1),
            text.replace(" she ", " he ") if " she " in text else text.replace(" he ", " she "),
            text.replace(re.search(r"named (\w+)", text)[1], "Zog", 1),
            text.replace(". ", ".  ", 1),
        ]
        assert {log_probability(other) for other in altered if other != text} == {-math.inf}
    assert log_probability("") == log_probability("Once upon a time") == -math.inf


# --- one derivation


def derivations(language: Grammar, text: str) -> int:
    """How many walks tell `text`, trying every alternative and not only the first that fits."""

    def count(node, position: int, said: dict[str, str]) -> int:
        if node is None:
            return position == len(text)
        if isinstance(node, grammar._Fork):
            ways = [(words, after, said) for words, after in zip(node.texts, node.following, strict=True)]
        else:
            words_of = [said[node.slot]] if node.slot in said else language._words[node.slot].given(said)
            ways = [(word, node.following, said | {node.slot: word}) for word in words_of]
        return sum(count(after, position + len(w), now) for w, after, now in ways if text.startswith(w, position))

    return count(language._start, 0, {})


def test_every_text_has_one_derivation(stories):
    """Two walks to one text would each carry a part of its probability, and the entropy would be too high."""
    assert {derivations(SMALL, text) for text, _ in every_story(SMALL)} == {1}
    assert {derivations(BUILTIN, text) for text, _ in stories[:300]} == {1}


def test_the_count_of_derivations_can_be_two(monkeypatch):
    """The count above proves nothing if it cannot see an ambiguity."""
    monkeypatch.setattr(grammar, "_check_prefix_free", lambda texts: None)
    language = Grammar("[a|a{b}]{b}", {"b": "b, bb"})
    assert [derivations(language, text) for text in ("ab", "abb", "abbb", "b")] == [1, 2, 0, 0]


@pytest.mark.parametrize(
    ("template", "words", "complaint"),
    [
        ("[a|ab]c", {}, "ambiguous: a choice between 'a' and 'ab'"),
        ("[x|a|y|a]", {}, "ambiguous"),
        ("[the {x}|the {y}]", {"x": "p, q", "y": "r, s"}, "ambiguous"),
        ("a {toy}", {"toy": "ball, car, balloon"}, "ambiguous: a choice between 'ball' and 'balloon'"),
        ("a {toy}", {"kind": "p, q", "toy": ("kind", "car, cart", "doll, bell")}, "ambiguous"),
        ("a [small|]", {}, "start with text of its own"),
        ("a [{x}|b]", {"x": "p, q"}, "start with text of its own"),
        ("a [[b|c]|d]", {}, "start with text of its own"),
        ("{a} {b}", {"a": "p, q", "b": ("a", "r, s", "t")}, "equally long"),
        ("{a} {b}", {"a": "p, q", "b": ("a", "r", "s", "t")}, "argument"),
        ("{a} {b} {c}", {"a": "p, q", "b": ("a", "r", "s"), "c": ("b", "t", "u")}, "itself depends"),
        ("a [b|c", {}, "not closed"),
        ("a b|c]", {}, "outside of brackets"),
        ("a | b", {}, "outside of brackets"),
        ("a {b", {}, "brace"),
    ],
)
def test_refuses_what_has_no_single_derivation(template, words, complaint):
    """The rule that makes the log-probability of a text exact is checked when a grammar is made."""
    with pytest.raises(ValueError, match=complaint):
        Grammar(template, words)


# --- the stories


def test_number_of_stories():
    """At least 10^12 different stories."""
    assert size(BUILTIN)[0] >= 10**12


def test_stories_do_not_repeat(stories):
    """Stories that differ in their number only by name: of so many, twenty thousand draws are all different."""
    assert len({text for text, _ in stories}) == len(stories)


def test_a_story_depends_on_seed_and_index_only(stories):
    """A generator whose state leaks from story to story, or a seed that is not used."""
    assert list(write_stories(5, seed=1, start=100)) == stories[100:105]
    assert {text for text, _ in write_stories(100, seed=2)}.isdisjoint(text for text, _ in stories)
    assert list(write_stories(0, seed=1)) == []


def test_stories_have_60_to_120_tokens(stories):
    """A longer story would be cut at 128 tokens and its probability no longer be that of what the model sees."""
    low, high = token_bounds()
    assert low >= 60
    assert high <= 120
    _, lengths = gpt2().encode_batch([text for text, _ in stories])
    assert low <= lengths.min()
    assert lengths.max() <= high


def token_bounds() -> tuple[int, int]:
    """The least and the most GPT-2 tokens that any story can have, over all choices and not only a sample.

    GPT-2's pieces are words and runs of punctuation, each with the space before it, so the tokens of the parts of
    a story add up if no part ends within such a piece.
    """
    cache = {}

    def rest(node, before: str) -> tuple[int, int]:
        if node is None:
            return 0, 0
        if (node, before) not in cache:
            if isinstance(node, grammar._Fork):
                steps = [(text, after) for text, after in zip(node.texts, node.following, strict=True)]
            else:
                words = itertools.chain(*BUILTIN._words[node.slot]._words.values())
                steps = [(word, node.following) for word in words]
            ends = []
            for text, after in steps:
                assert " " in (before, text[0]) or before.isalpha() != text[0].isalpha()
                tokens = len(gpt2().encode((before == " ") * " " + text.rstrip(" ")))
                ends.append([tokens + further for further in rest(after, text[-1])])
            lows, highs = zip(*ends, strict=True)
            cache[node, before] = min(lows), max(highs)
        return cache[node, before]

    return rest(BUILTIN._start, "")


def test_people_and_things_stay_the_same(stories):
    """A pronoun of the other kind, a friend or a toy that turns into another one half-way."""
    foreign = {"girl": {"boy", "he", "him", "his"}, "boy": {"girl", "she", "her", "hers"}}
    patterns = {
        " named ": r"named (\w+) lived with (his|her) (\w+)\. On(e| a) \w+ \w+, \1 ",
        "They looked ": r"a \w+ (\w+) lost a \w+ \w+ (\w+)\. .* said the \1\. .* the \2 \w+ a .* the \1\. ",
        " same ": r"a \w+ (\w+) wanted the same \w+ \w+ (\w+)\..* the \1\. They .* the \2 .* They fixed the \2 ",
        " raced ": r"a \w+ (\w+) raced .* when the \1 tripped .* asked the \1\. ",
        " thought there was ": r"was a (\w+) in .* not a \1!",
        " learn to ": r"learn to (\w+)\. .* to \1,.* could \1 ",
        " pieces ": r"with (his|her) (\w+)\..* broke \1 \2's \w+ \w+ (\w+)\..* .I broke the \3\..* (His|Her) \2 ",
        " wand": r"a \w+ (\w+) met a \w+ (\w+) by .* a \w+ \w+ (\w+), but the \1 was .* said the \2\. .* that the \1 "
        r"would be (\w+),.* The \2 waved .* The \1 was \4 at once, .* the \3 too\. ",
    }
    seen = Counter()
    for text, _ in stories:
        words = set(re.findall(r"\w+", text.lower()))
        assert words.isdisjoint(foreign["girl" if "girl named" in text else "boy"]), text
        for mark, pattern in patterns.items():
            if mark in text:
                assert re.search(pattern, text), text
                seen[mark] += 1
    assert min(seen.values()) > 1000
    assert seen.keys() == patterns.keys()


def test_stories_are_well_formed_english(stories):
    """ "a apple", a doubled space or word, a sentence without a capital or a quotation left open."""
    for text, _ in stories:
        assert not re.search(r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou]|  |\s[.,!?]|[.,!?]{2}|\b(\w+) \1\b|[.!?] [a-z]", text), (
            text
        )
        assert text.count('"') % 2 == 0
        assert text[0].isupper()
        assert text[-1] == "."
        assert text.isascii()


def test_every_word_list_and_part_is_used():
    """Words or plots that no story can have."""
    assert set(re.findall(r"{(\w+)}", " ".join([TOLD["story"], *PARTS.values()]))) == WORDS.keys() | PARTS.keys()


def test_stories_are_the_same_everywhere():
    """A change of the writer or the words changes what seed 0 means: update the hash only if that is intended."""
    text = "\n".join(f"{text} {log_p:.9f}" for text, log_p in write_stories(200, seed=0))
    assert (
        hashlib.sha256(text.encode()).hexdigest() == "2eeee0db8ca78b38fc3fbbbaf822f068bb4a9dd9d24c643302751704517dfad8"
    )
