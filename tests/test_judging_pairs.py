"""Minimal pairs, and what the model and counting say of them, against sums made by hand."""

import math
import zlib
from collections import Counter
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinygpt_jax.config import ModelConfig
from tinygpt_jax.judging import ngram_model
from tinygpt_jax.judging.pairs import all_in_vocabulary, make_pairs, meanings, pair_section
from tinygpt_jax.judging.scoring import text_log_probabilities
from tinygpt_jax.model import GPT
from tinygpt_jax.tokenizer import compact, gpt2

PAIRS = make_pairs()


def differing(pair):
    """What stands in the one place where the texts of a pair differ."""
    right, wrong = pair.right.split(), pair.wrong.split()
    return [(a, b) for a, b in zip(right, wrong, strict=True) if a != b]


def test_there_are_enough_pairs_and_each_differs_in_one_word():
    """In equally many tokens too, so that no text is likelier for being shorter."""
    assert len(PAIRS) == len(set(PAIRS)) >= 1000 and len(Counter(pair.kind for pair in PAIRS)) == len(meanings()) >= 8
    for pair in PAIRS:
        assert len(differing(pair)) == 1, pair
        assert len(gpt2().encode(pair.right)) == len(gpt2().encode(pair.wrong)), pair
    assert make_pairs() == PAIRS and make_pairs(seed=1) != PAIRS


def test_no_text_has_a_slot_or_a_bracket_left_or_a_vowel_behind_a():
    for pair in PAIRS:
        for text in (pair.right, pair.wrong):
            assert not set("[]{}|") & set(text) and text[-1] in '.!"' and "  " not in text
            words = text.split()
            assert not any(a == "a" and b[0] in "aeiou" for a, b in pairwise(words)), text


@pytest.mark.parametrize("kind", meanings())
def test_whoever_prefers_some_words_to_others_is_right_half_of_the_time(kind):
    """Any fixed order of the words, by length, by letters or by chance: no more than noise from a half."""
    pairs = [pair for pair in PAIRS if pair.kind == kind]
    orders = [len, str, lambda word: word[::-1], lambda word: zlib.crc32(word.encode())]
    for order in orders:
        points = [order(a) > order(b) for pair in pairs for a, b in differing(pair) if order(a) != order(b)]
        assert not points or abs(np.mean(points) - 0.5) < 3 * 0.5 / math.sqrt(len(points)), kind


def test_templates_make_the_texts_that_they_say(tmp_path):
    """All brackets together; {color2} is another word than {color}, each the same wherever it stands."""
    path = tmp_path / "pairs.toml"
    path.write_text(
        '[words]\ncolor = "red, blue"\n[[kinds]]\nname = "k"\nmeans = "m"\n'
        'templates = ["{color} {color2}: [a {color}|the {color2}] is [{color}|{color2}], {color}."]'
    )
    assert {tuple(pair[1:]) for pair in make_pairs(per_kind=4, path=path)} == {
        ("red blue: a red is red, red.", "red blue: a red is blue, red."),
        ("red blue: the blue is blue, red.", "red blue: the blue is red, red."),
        ("blue red: a blue is blue, blue.", "blue red: a blue is red, blue."),
        ("blue red: the red is red, blue.", "blue red: the red is blue, blue."),
    }
    with pytest.raises(ValueError, match="fewer than 5"):
        make_pairs(per_kind=5, path=path)
    path.write_text(path.read_text().replace("[{color}|{color2}]", "{color}"))
    with pytest.raises(ValueError, match="two brackets"):
        make_pairs(per_kind=4, path=path)


def test_pairs_with_a_word_outside_the_vocabulary_do_not_count():
    counts = np.zeros(50_257, int)
    counts[gpt2().encode(PAIRS[0].right) + gpt2().encode(PAIRS[0].wrong)] = 1
    assert all_in_vocabulary(compact(counts), PAIRS[:1]).tolist() == [True]
    counts[gpt2().encode(PAIRS[0].wrong)[-2]] = 0
    assert all_in_vocabulary(compact(counts), PAIRS[:1]).tolist() == [False]
    assert all_in_vocabulary(gpt2(), PAIRS).all()


def test_a_point_only_for_strictly_more():
    pairs = [PAIRS[0], PAIRS[0], PAIRS[0], PAIRS[-1]]
    right, wrong = np.array([-1.0, -2.0, -3.0, -1.0]), np.array([-2.0, -2.0, -2.0, -math.inf])
    section = pair_section(pairs, {"model": (right, wrong)})
    assert {row.name: row.cells["model"] for row in section.rows} == {
        "all pairs": 0.5,
        PAIRS[0].kind: 1 / 3,
        PAIRS[-1].kind: 1.0,
    }
    assert section.rows[0].cells["pairs"] == "4" and section.rows[0].cells["noise of chance"] == "25.0%"


# --- what models say

BYTES = compact(np.zeros(50_257, int))
TEXTS = [BYTES.encode(text) for text in ("ab", "Tom", "a longer text", "b")]


def test_the_log_probability_of_a_text_is_the_sum_of_its_tokens():
    """Against the logits, token by token in float64; the long text is read in overlapping windows of 8. Guards: the
    end counted, a text that sees its neighbour, tokens counted twice."""
    shape = {"n_layers": 1, "n_heads": 1, "d_model": 8, "d_ff": 8, "norm": "pre"}
    model = GPT(ModelConfig(vocab_size=257, context_length=8, **shape))
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))["params"]
    params = jax.tree.map(lambda p: p * 3, params)
    found = text_log_probabilities(model, params, TEXTS, 256)
    forward = jax.jit(lambda tokens: model.apply({"params": params}, tokens))

    def log_p(window, target):
        logits = np.asarray(forward(np.pad([window], ((0, 0), (0, 8 - len(window)))))[0, len(window) - 1], np.float64)
        return logits[target] - math.log(np.exp(logits).sum())

    for text, value in zip(TEXTS, found, strict=True):
        read, total = [256, *text], 0.0
        for place, target in enumerate(text):
            first = 0 if place < 8 else 4 if place < 12 else 8  # windows overlap by half
            total += log_p(read[first : place + 1], target)
        assert value == pytest.approx(total, rel=1e-5)


def counting(corpus, vocab_size, text, order, prior):
    """ln p of each token, as the docstring has it, with a list of all n-grams."""
    corpus, values = corpus.tolist(), []
    read = [256, *text]

    def count(gram):
        return sum(corpus[i : i + len(gram)] == gram for i in range(len(corpus) - len(gram) + 1))

    for place in range(1, len(read)):
        p = (count(read[place : place + 1]) + 1) / (len(corpus) + vocab_size)
        for n in range(2, min(order, place + 1) + 1):
            gram = read[place - n + 1 : place + 1]
            p = (count(gram) + prior * p) / (count(gram[:-1]) + prior)
        values.append(math.log(p))
    return values


@pytest.mark.parametrize("order", [1, 2, 5])
def test_the_ngram_model_is_its_formula(order):
    stories = ["abab", "tomato", "abba", "tom", "a"]
    corpus = np.concatenate([[*BYTES.encode(story), 256] for story in stories]).astype(np.uint16)
    texts = [BYTES.encode(text) for text in ("abat", "tomato", "zz", "a")]
    found = ngram_model.token_log_probabilities(corpus, 257, texts, 256, order)
    for text, values in zip(texts, found, strict=True):
        assert values == pytest.approx(counting(corpus, 257, text, order, ngram_model._PRIOR), rel=1e-12)
    every = [ngram_model.token_log_probabilities(corpus, 257, [[*texts[0], token]], 256, order) for token in range(257)]
    assert math.fsum(np.exp(values[0][-1]) for values in every) == pytest.approx(1)


def test_texts_of_the_same_words_are_equally_likely_to_a_unigram_model():
    """Summed in another order they would differ in the last digit, and one of them would get a point."""
    corpus = np.random.default_rng(0).integers(0, 257, 1000).astype(np.uint16)
    text = list(range(40))
    found = ngram_model.text_log_probabilities(corpus, 257, [text, text[::-1], [*text[20:], *text[:20]]], 256, 1)
    assert len(set(found.tolist())) == 1
