"""Each rule of sampling against its definition, written with sorts in NumPy."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinygpt_jax.config import Sampling
from tinygpt_jax.errors import UsageError
from tinygpt_jax.generation.sampling import (
    _smallest_kept,
    as_scalars,
    categorical,
    keep_top_k,
    keep_top_p,
    mark_seen,
    next_token,
    penalise_repetition,
    scale_by_temperature,
)

LOGITS = jnp.array(np.random.default_rng(0).normal(0, 4, (5, 1000)), jnp.float32)


@pytest.mark.parametrize("k", [1, 2, 50, 999, 1000, 5000])
def test_top_k(k):
    """Keeps exactly the k largest, unchanged."""
    threshold = np.sort(LOGITS)[:, ::-1][:, min(k, 1000) - 1 : min(k, 1000)]
    np.testing.assert_array_equal(keep_top_k(LOGITS, jnp.float32(k)), np.where(threshold <= LOGITS, LOGITS, -np.inf))


def test_top_k_keeps_ties():
    """Guards: an arbitrary choice among equals."""
    logits = jnp.array([[1.0, 3.0, 3.0, 2.0]])
    np.testing.assert_array_equal(keep_top_k(logits, jnp.float32(1)), [[-np.inf, 3, 3, -np.inf]])


@pytest.mark.parametrize("p", [1e-6, 0.1, 0.5, 0.9, 0.999])
def test_top_p(p):
    """Keeps a token if those before it, likeliest first, hold less than p. Guards: the last one left out."""
    for logits, kept in zip(np.array(LOGITS), np.array(keep_top_p(LOGITS, jnp.float32(p))), strict=True):
        order = np.argsort(-logits)
        probabilities = np.exp(logits[order].astype(np.float64))
        before = np.cumsum(probabilities / probabilities.sum()) - probabilities / probabilities.sum()
        np.testing.assert_array_equal(np.sort(order[before < p]), np.flatnonzero(kept > -np.inf))
        np.testing.assert_array_equal(kept[kept > -np.inf], logits[kept > -np.inf])


@pytest.mark.parametrize("target", [1e-6, 0.3, 1.0, 1.5])
def test_accelerators_find_the_same_threshold(target):
    """They compare with 31 candidates at a time. Guards: a part of the range that no candidate bounds."""
    probabilities = jnp.exp(LOGITS - LOGITS.max(axis=1, keepdims=True))
    thresholds = [_smallest_kept(probabilities, probabilities, target, ways) for ways in (2, 32)]
    np.testing.assert_array_equal(*thresholds)
    assert set(np.ravel(thresholds)) <= set(np.ravel(probabilities))


def test_only_rules_that_do_something_are_part_of_the_program():
    """Guards: work for top-k 0 (all tokens), top-p 1, a penalty of 1, and for anything but the likeliest at 0."""
    assert set(as_scalars(Sampling())) == {"temperature"}
    assert set(as_scalars(Sampling(0.0, top_k=3, top_p=0.5))) == set()
    assert set(as_scalars(Sampling(0.0, repetition_penalty=0.5))) == {"repetition_penalty"}
    assert set(as_scalars(Sampling(1.0, 3, 0.5, 2.0))) == {"temperature", "top_k", "top_p", "repetition_penalty"}


def test_repetition_penalty_makes_seen_tokens_less_likely():
    """Whatever the sign of their logits. Guards: negative logits divided, which makes a repetition likelier."""
    seen = jnp.array([[True, True, False, False]])
    penalised = penalise_repetition(jnp.array([[3.0, -3.0, 3.0, -3.0]]), seen, jnp.float32(1.5))
    np.testing.assert_allclose(penalised, [[2, -4.5, 3, -3]])


def test_repetition_penalty_spares_end_of_text():
    """It stands before every text. Guards: a penalty under which stories never end."""
    seen = mark_seen(jnp.zeros((2, 9), bool), jnp.array([[8, 3, 3], [5, 8, 0]]), 8)
    assert np.argwhere(seen).tolist() == [[0, 3], [1, 0], [1, 5]]


def test_temperature():
    """Divides, up to a constant of the row, and stays finite where logits / T would overflow."""
    scaled = np.array(scale_by_temperature(LOGITS, jnp.float32(0.5)))
    np.testing.assert_allclose(scaled - scaled[:, :1], (LOGITS - LOGITS[:, :1]) * 2, rtol=1e-5, atol=1e-5)
    for tiny in (1e-30, 1e-45):
        scaled = scale_by_temperature(LOGITS, jnp.float32(tiny))
        np.testing.assert_array_equal(jnp.exp(scaled), LOGITS.max(axis=-1, keepdims=True) == LOGITS)


@pytest.mark.parametrize("vocab", [5, 256, 700])
def test_categorical_draws_by_probability(vocab):
    """Frequencies of 40,000 draws against softmax, in part of a block, a full one and several. Chi-squared has
    mean `vocab - 1` and variance twice that."""
    logits = np.random.default_rng(1).normal(0, 1, vocab)
    draws = 40_000
    keys = jax.random.split(jax.random.key(2), draws)
    drawn = jax.jit(lambda row: categorical(keys, jnp.tile(row, (draws, 1))))(logits)
    counts = np.bincount(drawn, minlength=vocab)
    expected = np.exp(logits) / np.exp(logits).sum() * draws
    assert len(counts) == vocab
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert abs(statistic - (vocab - 1)) < 5 * np.sqrt(2 * (vocab - 1))


def test_categorical_never_draws_what_was_removed():
    """Nor the padding that fills the last block."""
    logits = np.full((1, 600), -np.inf, np.float32)
    logits[0, [3, 300, 599]] = [0, -1, 1]
    drawn = jax.jit(categorical)(jax.random.split(jax.random.key(0), 2000), jnp.tile(logits, (2000, 1)))
    assert set(np.unique(drawn)) == {3, 300, 599}


def test_rules_act_in_the_documented_order():
    """The penalty comes first: it takes token 0 out of the two likeliest. Temperature 0 takes the likeliest left."""
    logits = jnp.array([[3.0, 2.0, 1.9, -9.0]])
    seen = jnp.array([[True, False, False, False]])
    keys = jax.random.split(jax.random.key(0), 200)
    draw = jax.jit(lambda settings: next_token(keys, jnp.tile(logits, (200, 1)), jnp.tile(seen, (200, 1)), **settings))

    def drawn(**settings):
        return set(np.unique(draw(as_scalars(Sampling(**settings)))))

    assert drawn(temperature=1.0, top_k=2) == {0, 1}
    assert drawn(temperature=1.0, top_k=2, repetition_penalty=2.0) == {1, 2}
    # Of 0.59 0.22 0.20, top-k 2 leaves 0.73 0.27, of which the first is enough for top-p.
    assert drawn(temperature=1.0, top_k=2, top_p=0.7) == {0}
    assert drawn(temperature=0.0, repetition_penalty=2.0) == {1}
    # At temperature 100 the first two hold half of the probability; at temperature 1, nearly two thirds.
    assert drawn(temperature=100.0, top_p=0.6) == {0, 1, 2}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", 1e300),
        ("top_k", -1),
        ("top_k", 2**31),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e300),
        ("repetition_penalty", float("nan")),
    ],
)
def test_bad_settings_are_refused(name, value):
    with pytest.raises(UsageError, match=re.escape(f"{name} {value}: must be")):
        Sampling(**{name: value})


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-30, 0.001, 1000.0])
@pytest.mark.parametrize("repetition_penalty", [0.001, 1000.0])
def test_settings_at_their_bounds_choose_among_the_likeliest(temperature, repetition_penalty):
    """Guards: logits that overflow to infinity or to no number, of which always the first token is chosen."""
    settings = as_scalars(Sampling(temperature, top_k=2, top_p=1.0, repetition_penalty=repetition_penalty))
    logits = jnp.array([[-1e4, 5e3, -1.0, 4e3, 3e3]])
    seen = jnp.array([[False, True, True, False, False]])
    drawn = next_token(jax.random.split(jax.random.key(0), 1), logits, seen, **settings)
    assert int(drawn[0]) in ({1, 3} if repetition_penalty < 1 else {3, 4})
