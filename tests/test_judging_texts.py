"""N-grams found in a corpus against Python's sets, and the figures of diversity and form by hand."""

import json
import math
from collections import Counter

import numpy as np
import pytest

from tinygpt_jax.errors import UserError
from tinygpt_jax.judging import ngrams
from tinygpt_jax.judging.figures import Judgement, Row, Section, read_judgement, table, write_judgement
from tinygpt_jax.judging.form import (
    changes_names,
    distinct,
    form_section,
    repeats_a_sentence,
    self_bleu,
    sentences,
    words_of,
)
from tinygpt_jax.judging.memorisation import memorisation_section


def random_tokens(length, seed=0):
    return np.random.default_rng(seed).integers(0, 3, length).astype(np.uint16)


def grams(tokens, n):
    return [tuple(tokens[i : i + n].tolist()) for i in range(len(tokens) - n + 1)]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 16, 23])
def test_equal_ngrams_and_only_they_have_equal_hashes(n):
    tokens = random_tokens(400)
    hashes = ngrams.hashes(tokens, n).tolist()
    assert len(hashes) == 401 - n and len(set(zip(hashes, grams(tokens, n), strict=True))) == len(set(hashes))
    assert len(set(hashes)) == len(set(grams(tokens, n)))
    assert ngrams.hashes(tokens[: n - 1], n).size == 0


@pytest.mark.parametrize("chunk", [7, 64, 2**22])
def test_counts(monkeypatch, chunk):
    """Guards: n-grams at the edges of chunks, lost or counted twice."""
    monkeypatch.setattr(ngrams, "_CHUNK", chunk)
    monkeypatch.setattr(ngrams, "_TABLE_BITS", 4)  # so that many pass the table that are no keys
    corpus, asked = random_tokens(300), random_tokens(50, seed=1)
    for n in (1, 3, 5):
        known = Counter(grams(corpus, n))
        found = ngrams.counts(corpus, ngrams.hashes(asked, n), n)
        assert found.tolist() == [known[gram] for gram in grams(asked, n)]


def longest_runs(corpus, story, shortest, whole_from):
    known = {n: set(grams(corpus, n)) for n in range(1, len(story) + 1)}
    lengths = []
    for place in range(len(story)):
        n = 0
        while place + n < len(story) and tuple(story[place : place + n + 1].tolist()) in known[n + 1]:
            n += 1
        lengths.append(n if n >= whole_from else shortest * (n >= shortest))
    return lengths


@pytest.mark.parametrize("chunk", [7, 64, 2**22])
def test_match_lengths(monkeypatch, chunk):
    """Against sets of all n-grams. Some stories are cut from the corpus, across the edges of chunks, and at its end."""
    monkeypatch.setattr(ngrams, "_CHUNK", chunk)
    monkeypatch.setattr(ngrams, "_TABLE_BITS", 4)  # so that many pass the table that are no keys
    corpus = random_tokens(300)
    stories = [random_tokens(length, seed) for seed, length in enumerate((30, 1, 4, 0, 39), 1)]
    stories[0][5:25] = corpus[100:120]
    stories += [corpus[280:300], corpus[40:75], corpus[:9]]
    found = ngrams.match_lengths(corpus, stories, 3, 5)
    assert [row.tolist() for row in found] == [longest_runs(corpus, story, 3, 5) for story in stories]


def test_memorisation_by_hand():
    """A story of the corpus, one that joins halves of two, and one of other tokens."""
    end = 999
    first, second = np.arange(20), np.arange(100, 130)
    corpus = np.concatenate([first, [end], second, [end]]).astype(np.uint16)
    mixed = np.concatenate([first[:10], second[:10]])
    section = memorisation_section(corpus, {"written": [first, mixed], "held-out": [np.arange(500, 520)]})
    figures = {row.name: row.cells for row in section.rows}
    assert figures["5-grams"] == {"written": (16 + 6 + 6) / 32, "held-out": 0.0}
    assert figures["8-grams"]["written"] == (13 + 3 + 3) / 26
    assert figures["13-grams"]["written"] == 8 / 16
    assert figures["longest span"] == {"written": 20, "held-out": 0} and figures["its median"]["written"] == 15
    assert figures["whole stories"] == {"written": 0.5, "held-out": 0.0}


def test_no_run_goes_across_the_end_of_a_story():
    corpus = np.array([1, 2, 3, 4, 9, 5, 6, 7, 8, 9], np.uint16)
    (found,) = ngrams.match_lengths(corpus, [np.array([1, 2, 3, 4, 5, 6, 7, 8])], 2, 3)
    assert found.tolist() == [4, 3, 2, 0, 4, 3, 2, 0]


# --- diversity and form


def bleu_by_hand(story, others):
    """Papineni et al. 2002, section 2.3, with loops."""
    log_p = 0.0
    for n in (1, 2, 3, 4):
        mine = Counter(tuple(story[i : i + n]) for i in range(len(story) - n + 1))
        most = Counter()
        for other in others:
            most |= Counter(tuple(other[i : i + n]) for i in range(len(other) - n + 1))
        clipped = sum(min(count, most[gram]) for gram, count in mine.items())
        if clipped == 0:
            return 0.0
        log_p += math.log(clipped / mine.total()) / 4
    nearest = min((abs(len(other) - len(story)), len(other)) for other in others)[1]
    return math.exp(log_p) * min(1.0, math.exp(1 - nearest / len(story)))


def test_self_bleu_is_the_mean_of_bleu():
    """Guards: a story among its own references, and the clip at the count of the wrong story."""
    random = np.random.default_rng(2)
    stories = [random.choice(["a", "b", "c"], length).tolist() for length in (9, 12, 15, 20, 3, 12)]
    expected = [bleu_by_hand(story, stories[:i] + stories[i + 1 :]) for i, story in enumerate(stories)]
    assert min(expected[:4]) > 0 and len(set(expected)) > 3
    assert self_bleu(stories) == pytest.approx(np.mean(expected), rel=1e-12)
    assert self_bleu([["a"] * 5] * 3) == pytest.approx(1.0) and self_bleu([list("abcde"), list("fghij")]) == 0.0


def test_distinct_by_hand():
    stories = ["a b a b".split(), "a b c d".split()]
    assert distinct(stories, 1, 99) == 4 / 8 and distinct(stories, 2, 99) == 4 / 6
    assert distinct(stories, 2, 6) == 2 / 4 and distinct([["a"]], 2, 9) is None


@pytest.mark.parametrize(
    ("text", "repeats"),
    [
        ("She was a girl. She was a girl.", True),
        ('"I like the dog!" He ran. I like the dog.', True),
        ("He ran. He ran. She was a girl.", False),
        ("She was a girl. She was a boy.", False),
    ],
)
def test_a_repeated_sentence(text, repeats):
    assert repeats_a_sentence(text) is repeats


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("A girl named Lily sat. She met Tom there. Later Lily ran. Lily and Tom slept.", False),
        ("A girl named Lily sat. She ran. Then came Tom. The next day, Tom slept.", True),
        ("A girl named Lily sat. She ran. Then she slept. Mom and I were glad.", False),
        ("A girl named Lily sat. She ran. Soon Lily's mom came. She told Mom, Tom and Dad.", False),
        ("A girl sat. She ran. Then came Tom. The next day, Tom slept.", None),
        ('A dog called Spot sat. It ran. "Hello," said Anna. "Where is he?"', True),
    ],
)
def test_other_names(text, changes):
    assert changes_names(text) is changes


def test_sentences_and_words():
    text = "He said, \"Hi! Go.\" It's 3 o'clock... The end"
    assert [s.strip() for s in sentences(text)] == ['He said, "Hi!', 'Go."', "It's 3 o'clock...", "The end"]
    assert words_of('"It\'s Tom," he said.') == ["it's", "tom", "he", "said"]


def test_the_form_of_stories_by_hand():
    texts = ["Once upon a time, a boy ran home.", "A cow sat here.", "A cow sat here. A cow sat here."]
    section = form_section({"written": (texts, [True, True, False]), "held-out": (texts[:1], [True])})
    figures = {row.name: row.cells for row in section.rows}
    assert figures["distinct-1"] == {"written": 7 / 8, "held-out": 7 / 8}  # of eight words: as many as the smaller has
    assert figures["opening"] == {"written": 1 / 3, "held-out": 1.0}
    assert figures["ended"]["written"] == 2 / 3 and figures["repeats"]["written"] == 1 / 3
    assert figures["words"] == {"written": 20 / 3, "held-out": 8.0} and figures["self-BLEU"]["held-out"] is None
    assert figures["other names"]["written"] is None


# --- the file


JUDGEMENT = Judgement(
    7,
    "2 stories",
    [
        Section(
            "pairs",
            "of 3",
            [
                Row("all", {"model": 0.25, "chance": 0.5, "n": "3"}, "share", "what it means"),
                Row("some", {"model": None, "x": 2.0}, "count", "the same"),
                Row("others", {"model": 1234.0}, "count", "the same"),
            ],
            ["a note"],
        )
    ],
)


def test_a_judgement_survives_the_file(tmp_path):
    assert read_judgement(tmp_path) is None
    assert write_judgement(tmp_path, JUDGEMENT) == tmp_path / "stories.json"
    assert read_judgement(tmp_path) == JUDGEMENT


def test_what_is_no_number_is_null(tmp_path):
    diverged = Judgement(1, "", [Section("a", "", [Row("b", {"c": math.nan, "d": -math.inf}, "nats", "")])])
    write_judgement(tmp_path, diverged)
    assert read_judgement(tmp_path).sections[0].rows[0].cells == {"c": None, "d": None}


def test_a_table_says_each_meaning_once():
    lines = [line.split() for line in table(JUDGEMENT.sections[0]).splitlines()]
    assert lines[1:] == [
        ["model", "chance", "n", "x"],
        ["all", "25.0%", "50.0%", "3"],
        ["some", "2"],
        ["others", "1,234"],
        ["all", "what", "it", "means"],
        ["some", "...", "the", "same"],
        ["a", "note"],
    ]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("step"),
        lambda d: d.update(step=True),
        lambda d: d.update(sections={}),
        lambda d: d["sections"].append(3),
        lambda d: d["sections"][0].update(name=None),
        lambda d: d["sections"][0].update(notes=[1]),
        lambda d: d["sections"][0]["rows"][0].update(unit="miles"),
        lambda d: d["sections"][0]["rows"][0].update(cells=[1]),
        lambda d: d["sections"][0]["rows"][0]["cells"].update(model=10**400),
        lambda d: d["sections"][0]["rows"][0]["cells"].update(model=[1]),
        lambda d: d["sections"].extend([d["sections"][0]] * 1000),
    ],
)
def test_a_forged_file_is_refused_in_one_line(tmp_path, change):
    document = json.loads(JUDGEMENT.to_json())
    change(document)
    (tmp_path / "stories.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match=r"stories.json is damaged: measure anew with .* --stories"):
        read_judgement(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": NaN}'])
def test_a_torn_file_is_refused(tmp_path, content):
    (tmp_path / "stories.json").write_text(content)
    with pytest.raises(UserError, match="damaged"):
        read_judgement(tmp_path)
