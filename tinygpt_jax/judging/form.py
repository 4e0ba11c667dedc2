"""How diverse stories are, and whether they have the form of a story. Words are runs of letters, digits and '."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from tinygpt_jax.judging.figures import Row, Section, Unit

OPENING = "Once upon a time"
_BLEU_ORDER = 4
_REPEATED_WORDS = 4  # of a sentence, at least, that counts when it comes again
# Capitalised in the middle of a sentence, and no name.
_NO_NAMES = frozenset("I I'm I'll I've I'd Mom Mommy Dad Daddy Mama Papa Mum Mummy Grandma Grandpa Mr Mrs Miss".split())


_MEANS: dict[str, tuple[Unit, str]] = {
    "distinct-1": ("share", "different words among all, in as many words of each column (Li et al. 2016)"),
    "distinct-2": ("share", "the same of runs of two words"),
    "distinct-3": ("share", "and of three"),
    "self-BLEU": ("number", "how like a story is to the others: 1 if all are equal (BLEU-4, Zhu et al. 2018)"),
    "opening": ("share", f'stories that begin with "{OPENING}"'),
    "ended": ("share", "stories that come to their end before they are cut"),
    "repeats": ("share", f"stories that say a sentence of {_REPEATED_WORDS} words or more twice"),
    "other names": ("share", "of stories that introduce a named X: later half with names, and X not among them"),
    "words": ("number", "in a story, on average"),
}


def form_section(columns: Mapping[str, tuple[Sequence[str], Sequence[bool]]]) -> Section:
    """All figures of some sets of stories: of each column the texts, and which of them have ended."""
    words = {name: [words_of(text) for text in texts] for name, (texts, _) in columns.items()}
    least = min(sum(map(len, stories)) for stories in words.values())
    found = {name: _figures(*columns[name], words[name], least) for name in columns}
    rows = [
        Row(name, {column: found[column][name] for column in columns}, unit, means)
        for name, (unit, means) in _MEANS.items()
    ]
    return Section("form", "diversity and form, of stories that the model wrote and of held-out ones", rows)


def _figures(
    texts: Sequence[str], ended: Sequence[bool], words: Sequence[Sequence[str]], most_words: int
) -> dict[str, float | None]:
    changed = [changes for changes in map(changes_names, texts) if changes is not None]
    return {
        **{f"distinct-{n}": distinct(words, n, most_words) for n in (1, 2, 3)},
        "self-BLEU": self_bleu(words),
        "opening": _mean([text.startswith(OPENING) for text in texts]),
        "ended": _mean(ended),
        "repeats": _mean([repeats_a_sentence(text) for text in texts]),
        "other names": _mean(changed),
        "words": _mean([len(story) for story in words]),
    }


def words_of(text: str) -> list[str]:
    """The words of a text in lower case."""
    return re.findall(r"[\w']+", text.lower())


def distinct(stories: Sequence[Sequence[str]], n: int, most_words: int) -> float | None:
    """Different n-grams over all n-grams, in the first so many words of the stories; more words have fewer new ones."""
    seen, total = set(), 0
    for story in stories:
        story, most_words = story[:most_words], most_words - len(story[:most_words])
        grams = list(_ngrams(story, n))
        seen.update(grams)
        total += len(grams)
    return len(seen) / total if total else None


def self_bleu(stories: Sequence[Sequence[str]]) -> float | None:
    """The mean over stories of BLEU-4 with all other stories as references (Papineni et al. 2002), not smoothed.

    BLEU is the geometric mean of the clipped precisions of n-grams, n = 1 to 4, times exp(1 - r / c) where the story
    is shorter (c words) than the reference nearest to it in length (r words, of two equally near the shorter).
    """
    if len(stories) < 2:
        return None
    log_precisions = np.zeros(len(stories))
    for n in range(1, _BLEU_ORDER + 1):
        counts = [Counter(_ngrams(story, n)) for story in stories]
        largest: dict[tuple[str, ...], tuple[int, int]] = defaultdict(lambda: (0, 0))  # two counts, of two stories
        for count in counts:
            for gram, times in count.items():
                largest[gram] = tuple(sorted((*largest[gram], times))[1:])  # pyright: ignore[reportArgumentType]
        for number, count in enumerate(counts):
            clipped = 0
            for gram, times in count.items():
                second, first = largest[gram]
                clipped += min(times, second if times == first else first)  # the most in any other story
            with np.errstate(divide="ignore"):
                log_precisions[number] += np.log(clipped / max(1, count.total())) / _BLEU_ORDER
    lengths = np.array([len(story) for story in stories])
    penalties = [_brevity(length, np.delete(lengths, number)) for number, length in enumerate(lengths)]
    return float(np.mean(np.exp(log_precisions) * penalties))


def repeats_a_sentence(text: str) -> bool:
    """Whether a sentence of at least 4 words stands in a text twice, word for word."""
    said = [tuple(words_of(sentence)) for sentence in sentences(text)]
    long = [sentence for sentence in said if len(sentence) >= _REPEATED_WORDS]
    return len(set(long)) < len(long)


def changes_names(text: str) -> bool | None:
    """Whether the character that a story introduces as "named X" is replaced; None where it introduces nobody so.

    That is: the second half of its sentences names somebody, and not X. A name is a word that is capitalised in the
    middle of a sentence somewhere in the story (behind a small letter or a comma), but for "I", "Mom" and their like.
    """
    introduced = re.search(r"\b(?:named|called) ([A-Z]\w+)", text)
    if introduced is None:
        return None
    names = {*re.findall(r"(?<=[a-z,;] )[A-Z][\w']*", text)}
    names = {re.sub(r"'s?$", "", name) for name in names} - _NO_NAMES
    told = sentences(text)
    later = {*re.findall(r"\w+", " ".join(told[len(told) // 2 :]))}
    return bool(names & later) and introduced[1] not in later


def sentences(text: str) -> list[str]:
    """The sentences of a text: up to each . ! or ? with the quotation marks behind it."""
    return re.findall(r"[^.!?]+(?:[.!?]+[\"'”’]*|$)", text)


def _brevity(length: int, references: np.ndarray) -> float:
    nearest = min(references.tolist(), key=lambda reference: (abs(reference - length), reference))
    return float(np.exp(min(0.0, 1 - nearest / length))) if length else 0.0


def _ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None
