"""The fused loss against the plain one: same value, same gradients, for every way of cutting the work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from tinygpt_jax import functional as F
from tinygpt_jax.fused import head_cross_entropy

BATCH, LENGTH, D_MODEL, VOCAB = 2, 6, 5, 50


@pytest.fixture
def problem(draw):
    """Hidden states, head, targets, and a mask that leaves some targets out."""
    targets = np.random.default_rng(1).integers(0, VOCAB, (BATCH, LENGTH))
    return draw(BATCH, LENGTH, D_MODEL), draw(VOCAB, D_MODEL), targets, draw(BATCH, LENGTH) > -0.5


def expected(hidden, head, targets, mask):
    """The loss and its gradients by hidden states and head, from the reference."""
    hidden, targets, mask = hidden.reshape(-1, D_MODEL), targets.ravel(), mask.ravel()
    logits = hidden @ head.T
    by_logits = reference.cross_entropy_gradient(logits, targets, mask)
    by_hidden = (by_logits @ head).reshape(BATCH, LENGTH, D_MODEL)
    return reference.cross_entropy(logits, targets, mask), by_hidden, by_logits.T @ hidden


def actual(hidden, head, targets, mask, **options):
    """The same three from `head_cross_entropy`."""
    function = jax.value_and_grad(lambda *a: head_cross_entropy(*a, **options), argnums=(0, 1))
    loss, (by_hidden, by_head) = jax.jit(function)(hidden, head, jnp.asarray(targets), jnp.asarray(mask))
    return loss, by_hidden, by_head


@pytest.mark.parametrize("chunks", [1, 2, 6])
@pytest.mark.parametrize("vocab_multiple", [1, 25, 128])
def test_loss_and_gradients(chunks, vocab_multiple, problem):
    """The padding of the vocabulary has no probability and no gradient, and no chunk is forgotten."""
    hidden, head, targets, mask = problem
    results = actual(
        jnp.asarray(hidden), jnp.asarray(head), targets, mask, chunks=chunks, vocab_multiple=vocab_multiple
    )
    for result, wanted in zip(results, expected(*problem), strict=True):
        assert result.shape == np.shape(wanted)
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)
    alone = head_cross_entropy(*map(jnp.asarray, problem), chunks=chunks, vocab_multiple=vocab_multiple)
    np.testing.assert_allclose(alone, results[0], rtol=1e-6)  # without a gradient another path computes it


def test_gradient_is_scaled_by_what_follows(problem):
    """The gradients are computed in the forward pass, before it is known what the loss is multiplied by."""
    hidden, head, targets, mask = map(jnp.asarray, problem)
    gradients = jax.grad(lambda *a: 3 * head_cross_entropy(*a, targets, mask), argnums=(0, 1))(hidden, head)
    for gradient, wanted in zip(gradients, expected(*problem)[1:], strict=True):
        np.testing.assert_allclose(gradient, 3 * wanted, rtol=1e-5, atol=1e-6)


def test_without_a_mask_every_target_counts(problem):
    hidden, head, targets, _ = problem
    loss = head_cross_entropy(*map(jnp.asarray, (hidden, head, targets)))
    wanted = reference.cross_entropy((hidden @ head.T).reshape(-1, VOCAB), targets.ravel())
    assert float(loss) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("chunks", [1, 2])
def test_nothing_to_predict_is_zero(chunks, problem):
    hidden, head, targets, mask = problem
    results = actual(jnp.asarray(hidden), jnp.asarray(head), targets, np.zeros_like(mask), chunks=chunks)
    for result in results:
        np.testing.assert_array_equal(result, 0)


def test_exact_for_large_logits(problem):
    """Losses of a few nats between logits near 10,000."""
    _, head, targets, mask = problem
    hidden, head = np.ones((BATCH, LENGTH, D_MODEL)), np.zeros((VOCAB, D_MODEL))
    head[:, 0] = 1e4 + np.linspace(0, 3, VOCAB).astype(np.float32).round(1)
    head = head.astype(np.float32).astype(np.float64)
    loss, by_hidden, by_head = actual(jnp.asarray(hidden), jnp.asarray(head), targets, mask)
    wanted_loss, _, wanted_by_head = expected(hidden, head, targets, mask)
    assert float(loss) == pytest.approx(wanted_loss, rel=2e-6)
    np.testing.assert_allclose(by_head, wanted_by_head, rtol=1e-5, atol=1e-6)
    assert np.isfinite(by_hidden).all()


def test_bfloat16(problem):
    """Products in bfloat16, the loss and the head's gradient in float32, all within a few roundings of 2^-8."""
    hidden, head, targets, mask = problem
    narrow = jnp.asarray(hidden, jnp.bfloat16)
    loss, by_hidden, by_head = actual(narrow, jnp.asarray(head), targets, mask, chunks=2, vocab_multiple=128)
    assert (loss.dtype, by_hidden.dtype, by_head.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    wanted = expected(np.asarray(narrow, np.float64), head, targets, mask)
    assert float(loss) == pytest.approx(wanted[0], rel=0.01)
    for gradient, exact in zip((by_hidden, by_head), wanted[1:], strict=True):
        np.testing.assert_allclose(np.asarray(gradient, np.float64), exact, rtol=0, atol=0.03 * np.abs(exact).max())


def test_equals_the_plain_functions(problem):
    hidden, head, targets, mask = map(jnp.asarray, problem)
    plain = F.cross_entropy(F.linear(hidden, head.T), targets, mask)
    np.testing.assert_allclose(head_cross_entropy(hidden, head, targets, mask), plain, rtol=1e-6)


def test_chunks_must_divide_the_length(problem):
    with pytest.raises(ValueError, match="chunks 4 must divide the 6 positions"):
        head_cross_entropy(*map(jnp.asarray, problem), chunks=4)
