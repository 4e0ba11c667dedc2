"""The arranged functions against the plain ones: the same names, values and gradients. Then what only they can do."""

import inspect
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from tinygpt_jax import functional as F
from tinygpt_jax import fused
from tinygpt_jax.config import ModelConfig
from tinygpt_jax.fused import blockwise
from tinygpt_jax.model import GPT

MASK = jnp.arange(20).reshape(4, 5) % 3 > 0
TARGETS = jnp.arange(12).reshape(2, 6)
# Name of a function: the arguments of some calls, as shapes of numbers to draw, or as values.
CALLS = {
    "self_attention": [[(2, length, 24), 2] for length in (31, blockwise.LONG_CONTEXT + 33)],
    "linear": [[(2, 3, 4), (4, 9), (9,)], [(5, 9), (9, 4)], [(1, 1, 1), (1, 1), (1,)]],
    "feed_forward": [[(2, 3, 4), (4, 7), (7,), (7, 4), (4,), activation] for activation in ("relu", "gelu")],
    "orthogonal_direction": [[(5, 5)], [(3, 7)], [(7, 3)], [(2, 5, 3)]],
    "embed": [[(11, 6), jnp.asarray(np.random.default_rng(1).integers(1, 11, (3, 50)))]],
    "attention": [
        *([*[(2, 3, 31, 8)] * 3, None, causal] for causal in (True, False)),
        [*[(1, 2, blockwise.LONG_CONTEXT + 33, 4)] * 3, None, True],
        [*[(1, 1, blockwise.LONG_CONTEXT, 4)] * 2, (1, 1, blockwise.LONG_CONTEXT, 6), None, True],
        [(2, 1, 4, 6), (2, 1, 5, 6), (2, 1, 5, 6), MASK],
    ],
    "head_cross_entropy": [[(2, 6, 5), (50, 5), TARGETS, mask] for mask in (None, TARGETS % 4 > 0)],
}
ARRANGED = [name for name, value in vars(fused).items() if inspect.isfunction(value) and value is not vars(F)[name]]
ARRANGED += [name for name, value in vars(fused).items() if isinstance(value, jax.custom_vjp)]


def test_the_names_and_signatures_are_those_of_the_plain_functions():
    """What is arranged may take further arguments, by name; and every arranged function is compared below."""
    assert set(ARRANGED) == set(CALLS)
    for name in ARRANGED:
        plain, arranged = (inspect.signature(getattr(module, name)).parameters for module in (F, fused))
        assert list(arranged)[: len(plain)] == list(plain), name
        for parameter in plain:
            assert arranged[parameter].default == plain[parameter].default, name
        further = [arranged[parameter] for parameter in list(arranged)[len(plain) :]]
        assert all(p.kind == p.KEYWORD_ONLY and p.default != p.empty for p in further), name


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, calls in CALLS.items() for call in calls])
def test_values_and_gradients_are_those_of_the_plain_functions(name, call, draw):
    arguments = [jnp.asarray(draw(*x), jnp.float32) if isinstance(x, tuple) else x for x in call]
    drawn = [i for i, x in enumerate(call) if isinstance(x, tuple)]
    plain, arranged = (
        jax.jit(partial(value_and_gradients, getattr(module, name), arguments, drawn))() for module in (F, fused)
    )
    for a, b in zip(jax.tree.leaves(arranged), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 * max(1, jnp.max(jnp.abs(b))))


def value_and_gradients(function, arguments, drawn):
    """The value, and the gradients of the arguments numbered in `drawn` for a gradient that is nowhere the same."""

    def of_drawn(*numbers):
        given = dict(zip(drawn, numbers, strict=True))
        return function(*(given.get(i, x) for i, x in enumerate(arguments)))

    value, pull_back = jax.vjp(of_drawn, *(arguments[i] for i in drawn))
    return value, pull_back(jnp.cos(jnp.arange(value.size, dtype=value.dtype)).reshape(value.shape))


def test_orthogonal_direction_of_a_matrix_that_lacks_directions(draw):
    """Their eigenvalues are rounding errors, which the iteration on the Gram matrix lets grow."""
    matrix = draw(64, 3) @ draw(3, 256)
    actual = jax.jit(fused.orthogonal_direction)(jnp.float32(matrix))
    np.testing.assert_allclose(actual, reference.orthogonal_direction(matrix), atol=1e-4)


@pytest.mark.parametrize("length", [1, 32, 100])
def test_attention_in_blocks(length):
    """Value and all three gradients, at lengths that fill blocks and that do not."""
    q, k, v, upstream = jax.random.normal(jax.random.key(length), (4, 2, 3, length, 8))

    def value_and_gradients(attention):
        value, pull_back = jax.vjp(attention, q, k, v)
        return value, *pull_back(upstream)

    plain = jax.jit(lambda: value_and_gradients(partial(F.attention, causal=True)))()
    blocks = jax.jit(lambda: value_and_gradients(lambda *qkv: blockwise.blockwise_attention(*qkv, 32)))()
    for a, b, tolerance in zip(plain, blocks, (5e-6, 5e-5, 5e-5, 5e-5), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance)


def test_attention_over_a_long_context_takes_linear_memory():
    """Twice the length, about twice the temporary memory of value and gradient: not four times."""

    def bytes_needed(length):
        x = jax.ShapeDtypeStruct((1, 2, length, 16), jnp.float32)
        gradient = jax.grad(lambda q, k, v: jnp.sum(fused.attention(q, k, v, causal=True)), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert bytes_needed(4096) < 2.6 * bytes_needed(2048)


def test_a_model_of_a_long_context_is_the_same():
    length = blockwise.LONG_CONTEXT
    config = ModelConfig(vocab_size=50, context_length=length, n_layers=1, n_heads=2, d_model=16, d_ff=32, dropout=0.0)
    tokens = jax.random.randint(jax.random.key(1), (1, length), 0, 50)
    params = jax.jit(GPT(config).init)(jax.random.key(0), tokens[:, :1])
    plain, arranged = (jax.jit(GPT(config, arithmetic=arithmetic).apply)(params, tokens) for arithmetic in (F, fused))
    np.testing.assert_allclose(plain, arranged, atol=1e-5)


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
    function = jax.value_and_grad(lambda *a: fused.head_cross_entropy(*a, **options), argnums=(0, 1))
    loss, (by_hidden, by_head) = jax.jit(function)(hidden, head, jnp.asarray(targets), jnp.asarray(mask))
    return loss, by_hidden, by_head


@pytest.mark.parametrize("chunks", [1, 2, 6])
@pytest.mark.parametrize("vocab_multiple", [1, 25, 128])
def test_the_loss_in_pieces(chunks, vocab_multiple, problem):
    """The padding of the vocabulary has no probability and no gradient, and no chunk is forgotten."""
    hidden, head, targets, mask = problem
    options = {"chunks": chunks, "vocab_multiple": vocab_multiple}
    results = actual(jnp.asarray(hidden), jnp.asarray(head), targets, mask, **options)
    for result, wanted in zip(results, expected(*problem), strict=True):
        assert result.shape == np.shape(wanted)
        np.testing.assert_allclose(result, wanted, rtol=1e-5, atol=1e-6)
    alone = fused.head_cross_entropy(*map(jnp.asarray, problem), chunks=chunks, vocab_multiple=vocab_multiple)
    np.testing.assert_allclose(alone, results[0], rtol=1e-6)  # without a gradient another path computes it


def test_the_losss_gradient_is_scaled_by_what_follows(problem):
    """The gradients are computed in the forward pass, before it is known what the loss is multiplied by."""
    hidden, head, targets, mask = map(jnp.asarray, problem)
    gradients = jax.grad(lambda *a: 3 * fused.head_cross_entropy(*a, targets, mask), argnums=(0, 1))(hidden, head)
    for gradient, wanted in zip(gradients, expected(*problem)[1:], strict=True):
        np.testing.assert_allclose(gradient, 3 * wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunks", [1, 2])
def test_a_loss_of_nothing_is_zero(chunks, problem):
    hidden, head, targets, mask = problem
    results = actual(jnp.asarray(hidden), jnp.asarray(head), targets, np.zeros_like(mask), chunks=chunks)
    for result in results:
        np.testing.assert_array_equal(result, 0)


def test_the_loss_of_large_logits_is_exact(problem):
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


def test_the_loss_in_bfloat16(problem):
    """Products in bfloat16, the loss and the head's gradient in float32, all within a few roundings of 2^-8."""
    hidden, head, targets, mask = problem
    narrow = jnp.asarray(hidden, jnp.bfloat16)
    loss, by_hidden, by_head = actual(narrow, jnp.asarray(head), targets, mask, chunks=2, vocab_multiple=128)
    assert (loss.dtype, by_hidden.dtype, by_head.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    wanted = expected(np.asarray(narrow, np.float64), head, targets, mask)
    assert float(loss) == pytest.approx(wanted[0], rel=0.01)
    for gradient, exact in zip((by_hidden, by_head), wanted[1:], strict=True):
        np.testing.assert_allclose(np.asarray(gradient, np.float64), exact, rtol=0, atol=0.03 * np.abs(exact).max())


def test_chunks_must_divide_the_length(problem):
    with pytest.raises(ValueError, match="chunks 4 must divide the 6 positions"):
        fused.head_cross_entropy(*map(jnp.asarray, problem), chunks=4)
