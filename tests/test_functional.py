"""Each function against the NumPy float64 reference: values, gradients, and the edges where such code breaks."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from tinygpt_jax import functional as F

LEADING = [(1, 1), (1, 5), (3, 4)]  # batch and length


def assert_close(actual, expected, tolerance=2e-6):
    """The same shape, and the same numbers up to `tolerance` of the largest."""
    expected = np.asarray(expected)
    assert actual.shape == expected.shape
    largest = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(np.asarray(actual, np.float64), expected, rtol=0, atol=tolerance * largest)


def over_leading_axes(function):
    """Let a reference for one matrix take [batch, heads, ..., ...]."""

    def looped(*arrays):
        leading = arrays[0].shape[:-2]
        results = np.array([function(*(x[index] for x in arrays)) for index in np.ndindex(leading)])
        return results.reshape(leading + results.shape[1:])

    return looped


def causal(query, key, value):
    return F.attention(query, key, value, causal=True)


def reference_causal(query, key, value):
    return reference.attention(query, key, value, reference.causal_mask(len(query), len(key)))


def rotary_of_two_heads(qkv):
    """`reference.rotary` of each head's queries and keys, head by head."""
    turned = qkv.copy()
    for row, head in np.ndindex(len(qkv), 4):  # of the queries, then of the keys
        mine = slice(4 * head, 4 * head + 4)
        turned[row, :, mine] = reference.rotary(qkv[row, :, mine])
    return turned


def heads(batch, length, keys=None):
    return [(batch, 2, length, 6), *[(batch, 2, keys or length, 6)] * 2]


def feed_forward_shapes(batch, length):
    return [(batch, length, 4), (4, 7), (7,), (7, 4), (4,)]


# Name: the function, its reference, and the shapes of the arguments for a batch and a length.
CASES = {
    "linear": (F.linear, reference.linear, lambda b, t: [(b, t, 4), (4, 6), (6,)]),
    "linear without bias": (F.linear, reference.linear, lambda b, t: [(b, t, 4), (4, 6)]),
    "layer_norm": (F.layer_norm, reference.layer_norm, lambda b, t: [(b, t, 6), (6,), (6,)]),
    "relu": (F.relu, reference.relu, lambda b, t: [(b, t, 6)]),
    "gelu": (F.gelu, reference.gelu_tanh, lambda b, t: [(b, t, 6)]),
    "attention": (F.attention, over_leading_axes(reference.attention), heads),
    "causal attention": (causal, over_leading_axes(reference_causal), heads),
    "causal attention with earlier keys": (
        causal,
        over_leading_axes(reference_causal),
        lambda b, t: heads(b, t, keys=t + 2),
    ),
    "rotary": (
        lambda qkv: F.rotary(qkv, 2, jnp.arange(qkv.shape[1])[None, :]),
        rotary_of_two_heads,
        lambda b, t: [(b, t, 24)],
    ),
    "feed_forward relu": (
        partial(F.feed_forward, activation="relu"),
        partial(reference.feed_forward, activation="relu"),
        feed_forward_shapes,
    ),
    "feed_forward gelu": (
        partial(F.feed_forward, activation="gelu"),
        partial(reference.feed_forward, activation="gelu"),
        feed_forward_shapes,
    ),
}


@pytest.mark.parametrize("leading", LEADING)
@pytest.mark.parametrize("name", CASES)
def test_value(name, leading, draw):
    function, expected, shapes = CASES[name]
    arguments = [draw(*shape) for shape in shapes(*leading)]
    assert_close(jax.jit(function)(*map(jnp.asarray, arguments)), expected(*arguments))


@pytest.mark.parametrize("name", CASES)
def test_gradient_of_every_argument(name, draw):
    """Automatic or hand-written, the derivative is that of the reference, by finite differences."""
    function, expected, shapes = CASES[name]
    arguments = [draw(*shape) for shape in shapes(2, 3)]
    weights = draw(*expected(*arguments).shape)  # so that every output counts differently
    differentiate = jax.grad(lambda *a: jnp.sum(function(*a) * weights), argnums=tuple(range(len(arguments))))
    gradients = jax.jit(differentiate)(*map(jnp.asarray, arguments))
    for i, gradient in enumerate(gradients):

        def loss(x, i=i):
            return np.sum(expected(*arguments[:i], x, *arguments[i + 1 :]) * weights)

        assert_close(gradient, reference.numerical_gradient(loss, arguments[i]), tolerance=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_bfloat16_stays_bfloat16_and_close(name, draw):
    """Activations keep their dtype, parameters stay float32, and the error is a few bfloat16 roundings (2^-8)."""
    function, expected, shapes = CASES[name]
    arguments = [draw(*shape) for shape in shapes(3, 4)]
    activations = 3 if "attention" in name else 1
    narrow = [jnp.asarray(x, jnp.bfloat16 if i < activations else jnp.float32) for i, x in enumerate(arguments)]
    actual = jax.jit(function)(*narrow)
    assert actual.dtype == jnp.bfloat16
    assert_close(actual, expected(*(np.asarray(x, np.float64) for x in narrow)), tolerance=0.02)


def test_layer_norm_of_small_features(draw):
    """Epsilon is added to the variance, inside the root: features of 0.001 show where it stands."""
    x, scale, bias = 1e-3 * draw(2, 3, 8), draw(8), draw(8)
    assert_close(F.layer_norm(*map(jnp.asarray, (x, scale, bias))), reference.layer_norm(x, scale, bias))


def test_layer_norm_epsilon_is_used(draw):
    x, scale, bias = draw(1, 2, 8), draw(8), draw(8)
    actual = F.layer_norm(*map(jnp.asarray, (x, scale, bias)), epsilon=0.5)
    assert_close(actual, reference.layer_norm(x, scale, bias, epsilon=0.5))


def test_layer_norm_far_from_zero(draw):
    """mean(x^2) - mean(x)^2 would lose the variance to rounding here."""
    x = (1000 + draw(2, 3, 64)).astype(np.float32).astype(np.float64)
    scale, bias = draw(64), draw(64)
    assert_close(F.layer_norm(*map(jnp.asarray, (x, scale, bias))), reference.layer_norm(x, scale, bias), 1e-4)


def test_layer_norm_of_equal_features_is_its_bias(draw):
    x, scale, bias = jnp.full((1, 2, 8), 3.0), jnp.asarray(draw(8)), jnp.asarray(draw(8))
    np.testing.assert_array_equal(F.layer_norm(x, scale, bias), np.tile(bias, (1, 2, 1)))


def test_gelu_is_the_tanh_form_and_finite_far_out():
    """The form with erf differs by up to 5e-4; the cube must not spoil large inputs."""
    x = np.linspace(-4, 4, 201)
    assert_close(F.gelu(jnp.asarray(x)), reference.gelu_tanh(x), 1e-6)
    np.testing.assert_array_equal(F.gelu(jnp.array([-1e4, 0.0, 1e4])), [0.0, 0.0, 1e4])


@pytest.mark.parametrize(("length", "d_model"), [(1, 2), (7, 6), (128, 64), (128, 768), (512, 16)])
def test_sinusoidal_encoding(length, d_model):
    """Sines on even and cosines on odd features, in float32. The last places of an angle of 500 radians are lost."""
    actual = F.sinusoidal_encoding(length, d_model)
    assert actual.dtype == jnp.float32
    assert_close(actual, reference.sinusoidal_encoding(length, d_model), 3e-5)


def test_rotary_products_depend_on_the_distance_alone(draw):
    """Moved along together, a query and a key have the same product; apart, another."""
    qkv = jnp.asarray(draw(1, 1, 24))

    def product(query_position, key_position):
        query, key = (
            F.rotary(qkv, 1, jnp.array([[position]]))[0, 0, 8 * part : 8 * part + 8]
            for part, position in enumerate((query_position, key_position))
        )
        return float(query @ key)

    assert product(7, 3) == pytest.approx(product(107, 103), rel=1e-4)
    assert abs(product(7, 3) - product(7, 4)) > 1e-2


@pytest.mark.parametrize("shape", [(4, 4), (3, 7), (7, 3), (2, 5, 3)])
def test_orthogonal_direction(shape, draw):
    """The iteration on matrices is that on their singular values, which end near 1."""
    matrix = draw(*shape)
    expected = reference.orthogonal_direction if len(shape) == 2 else over_leading_axes(reference.orthogonal_direction)
    actual = jax.jit(F.orthogonal_direction)(jnp.asarray(matrix))
    assert_close(actual, expected(matrix), 2e-5)
    values = np.linalg.svd(np.asarray(F.orthogonal_direction(jnp.eye(5) + 0.1)), compute_uv=False)
    assert values.min() > 0.6 and values.max() < 1.3


def test_causal_mask():
    np.testing.assert_array_equal(F.causal_mask(3), [[1, 0, 0], [1, 1, 0], [1, 1, 1]])
    np.testing.assert_array_equal(F.causal_mask(2, 4), [[1, 1, 1, 0], [1, 1, 1, 1]])
    np.testing.assert_array_equal(F.causal_mask(1, 3), [[1, 1, 1]])
    assert F.causal_mask(1).dtype == bool


@pytest.mark.parametrize("mask_shape", [(4, 5), (1, 1, 4, 5), (2, 1, 4, 5), (2, 3, 4, 5)])
def test_attention_under_any_mask(mask_shape, draw):
    """A mask may be shared by batch and heads or belong to each; a query with no key gets zeros and no NaN."""
    query, key, value = draw(2, 3, 4, 6), draw(2, 3, 5, 6), draw(2, 3, 5, 6)
    mask = draw(*mask_shape) > 0
    mask[..., 1, :] = False
    each = np.broadcast_to(mask, (2, 3, 4, 5))
    actual = F.attention(*map(jnp.asarray, (query, key, value, mask)))
    assert_close(actual, over_leading_axes(reference.attention)(query, key, value, each))
    np.testing.assert_array_equal(actual[:, :, 1], 0)


def test_attention_takes_a_mask_or_is_causal(draw):
    """Guards against a mask, of padding for example, that is dropped without a word."""
    x = jnp.asarray(draw(1, 2, 3, 4))
    with pytest.raises(ValueError, match="give one of the two"):
        F.attention(x, x, x, jnp.ones((3, 3), bool), causal=True)


def test_attention_gradient_of_an_empty_row_is_zero(draw):
    """A row that looks nowhere must not send NaN into the weights."""
    query, key, value = (jnp.asarray(draw(1, 1, 3, 4)) for _ in range(3))
    mask = jnp.array([[True, False, False], [False, False, False], [True, True, True]])
    differentiate = jax.grad(lambda *a: jnp.sum(F.attention(*a, mask) ** 2), argnums=(0, 1, 2))
    gradients = jax.jit(differentiate)(query, key, value)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_array_equal(gradients[0][..., 1, :], 0)


def test_attention_with_large_scores(draw):
    """Scores of several hundred overflow exp in float32, unless the largest is taken off first."""
    query, key, value = 30 * draw(1, 2, 4, 6), 30 * draw(1, 2, 4, 6), draw(1, 2, 4, 6)
    actual = causal(*map(jnp.asarray, (query, key, value)))
    assert_close(actual, over_leading_axes(reference_causal)(query, key, value), 5e-4)


def test_attention_scores_are_float32_under_bfloat16():
    """Scores of 100.25 and 100 are one number in bfloat16; the weights 0.56 and 0.44 tell them apart."""
    query, key = np.array([[[[2.0, 1.0, 0.0, 0.0]]]]), np.array([[[[100.0, 0.5, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]]]])
    value = np.eye(4)[None, None, :2]
    actual = F.attention(*(jnp.asarray(x, jnp.bfloat16) for x in (query, key, value)))
    assert_close(actual, over_leading_axes(reference.attention)(query, key, value), 0.005)


def test_heads_are_slices_of_the_features(draw):
    """Head h holds features h * head_dim and on, and merging gives them back in order."""
    x = jnp.asarray(draw(2, 5, 12))
    split = F.split_heads(x, 3)
    assert split.shape == (2, 3, 5, 4)
    for head in range(3):
        np.testing.assert_array_equal(split[:, head], x[:, :, 4 * head : 4 * head + 4])
    np.testing.assert_array_equal(F.merge_heads(split), x)


@pytest.mark.parametrize("leading", LEADING)
def test_embed(leading, draw):
    table, tokens = draw(11, 6), np.random.default_rng(1).integers(0, 11, leading)
    expected = reference.embed(table, tokens.ravel()).reshape(*leading, 6)
    assert_close(F.embed(jnp.asarray(table), jnp.asarray(tokens)), expected, 0)


@pytest.mark.parametrize("shape", [(1, 1), (3, 50)])
def test_embed_gradient_adds_up_repeated_tokens(shape, draw):
    """150 tokens over 11 rows meet many times; row 0 is never used and gets nothing."""
    table, tokens = draw(11, 6), np.random.default_rng(1).integers(1, 11, shape)
    weights = draw(*shape, 6)
    differentiate = jax.grad(lambda table: jnp.sum(F.embed(table, jnp.asarray(tokens)) * weights))
    actual = jax.jit(differentiate)(jnp.asarray(table))
    assert_close(actual, reference.embed_gradient(table, tokens.ravel(), weights.reshape(-1, 6)))
    np.testing.assert_array_equal(actual[0], 0)


RATES = [0.1, 0.5, 0.9]


def kept_share(rate):
    """The probability to keep, as 256ths: one random byte decides."""
    return round((1 - rate) * 256) / 256


@pytest.mark.parametrize("rate", RATES)
def test_dropout_share_and_mean(rate):
    """The share dropped is the rate's, and what is kept is scaled so that the expected value stays exactly."""
    x = jnp.full((20, 25, 301), 2.0)
    y = np.asarray(F.dropout(jax.random.key(0), x, rate), np.float64)
    keep = kept_share(rate)
    kept = y != 0
    np.testing.assert_allclose(y[kept], 2 / keep, rtol=1e-6)
    assert keep == pytest.approx(1 - rate, abs=1 / 512)
    five_sigma = 5 * math.sqrt(keep * (1 - keep) / y.size)
    assert kept.mean() == pytest.approx(keep, abs=five_sigma)
    assert y.mean() == pytest.approx(2, abs=2 * five_sigma / keep)


def test_dropout_decides_for_each_element_alone():
    """Neighbours along no axis agree more often than chance, though four features share a random word."""
    kept = np.asarray(F.dropout(jax.random.key(1), jnp.ones((32, 32, 32)), 0.5)) != 0
    for axis, distance in itertools.product(range(3), range(1, 5)):
        agree = np.take(kept, range(32 - distance), axis) == np.take(kept, range(distance, 32), axis)
        assert agree.mean() == pytest.approx(0.5, abs=2.5 / math.sqrt(agree.size))


def test_dropout_follows_its_key():
    x = jnp.ones((4, 5, 6))
    first, again, other = (F.dropout(jax.random.key(seed), x, 0.5) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != other)


def test_dropout_of_nothing_is_the_identity(draw):
    x = jnp.asarray(draw(2, 3, 5))
    np.testing.assert_array_equal(F.dropout(jax.random.key(0), x, 0.0), x)


@pytest.mark.parametrize("features", [1, 3, 4, 5])
def test_dropout_gradient_passes_where_it_kept(features, draw):
    """Features that are no multiple of four are drawn for as well, and the gradient sees the same mask."""
    x, weights = jnp.asarray(draw(20, 3, features)), jnp.asarray(draw(20, 3, features))
    y, pull_back = jax.vjp(lambda x: F.dropout(jax.random.key(0), x, 0.3), x)
    scale = np.where(np.asarray(y) != 0, 1 / kept_share(0.3), 0)
    assert 0 < (scale == 0).mean() < 1
    assert_close(pull_back(weights)[0], weights * scale)


def random_targets(draw, batch, length, vocab=11):
    """Logits [batch, length, vocab] and targets."""
    return draw(batch, length, vocab), np.random.default_rng(1).integers(0, vocab, (batch, length))


def reference_loss(logits, targets, mask=None):
    mask = None if mask is None else mask.ravel()
    return reference.cross_entropy(logits.reshape(-1, logits.shape[-1]), targets.ravel(), mask)


@pytest.mark.parametrize("leading", LEADING)
def test_cross_entropy(leading, draw):
    logits, targets = random_targets(draw, *leading)
    loss = F.cross_entropy(jnp.asarray(logits), jnp.asarray(targets))
    assert float(loss) == pytest.approx(reference_loss(logits, targets), rel=1e-6)


def test_cross_entropy_of_equal_logits_is_ln_v():
    assert float(F.cross_entropy(jnp.zeros((1, 3, 50)), jnp.array([[0, 7, 49]]))) == pytest.approx(math.log(50))


@pytest.mark.parametrize("level", [1e4, -1e4])
def test_cross_entropy_is_exact_for_large_logits(level, draw):
    """A loss of 2 beside logits of 10,000: adding and taking off the largest would leave errors of 0.001."""
    logits, targets = random_targets(draw, 3, 4)
    logits = (level + logits).astype(np.float32).astype(np.float64)
    actual = F.token_losses(jnp.asarray(logits), jnp.asarray(targets))
    expected = [reference_loss(logits[index], targets[index]) for index in np.ndindex(targets.shape)]
    assert_close(actual.ravel(), expected)


def test_cross_entropy_of_a_sure_mistake_is_finite():
    """A wrong certainty of 20,000 nats is that loss, not infinity."""
    logits = jnp.array([[[1e4, -1e4, 0.0]]])
    assert float(F.cross_entropy(logits, jnp.array([[1]]))) == 2e4
    assert float(F.cross_entropy(logits, jnp.array([[0]]))) == 0


def test_cross_entropy_leaves_masked_targets_out(draw):
    """The mean is over the targets that count, and the others have no gradient."""
    logits, targets = random_targets(draw, 3, 4)
    mask = draw(3, 4) > 0
    loss, gradient = jax.jit(jax.value_and_grad(F.cross_entropy))(*map(jnp.asarray, (logits, targets, mask)))
    assert float(loss) == pytest.approx(reference_loss(logits, targets, mask), rel=1e-6)
    expected = reference.cross_entropy_gradient(logits.reshape(-1, 11), targets.ravel(), mask.ravel())
    assert_close(gradient, expected.reshape(logits.shape), 1e-7)
    np.testing.assert_array_equal(gradient[~mask], 0)


def test_cross_entropy_of_nothing_is_zero(draw):
    logits, targets = random_targets(draw, 2, 3)
    arguments = jnp.asarray(logits), jnp.asarray(targets), jnp.zeros((2, 3), bool)
    loss, gradient = jax.jit(jax.value_and_grad(F.cross_entropy))(*arguments)
    assert float(loss) == 0
    np.testing.assert_array_equal(gradient, 0)


def test_cross_entropy_of_bfloat16_logits_is_float32(draw):
    logits, targets = random_targets(draw, 3, 4)
    narrow = jnp.asarray(logits, jnp.bfloat16)
    loss = F.cross_entropy(narrow, jnp.asarray(targets))
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(reference_loss(np.asarray(narrow, np.float64), targets), rel=1e-6)


def test_hand_derived_cross_entropy_gradient_is_the_numerical_one(draw):
    """The reference checks itself: its formula against finite differences."""
    logits, targets = draw(4, 5), np.array([0, 4, 2, 2])
    mask = np.array([True, False, True, True])
    numerical = reference.numerical_gradient(lambda x: reference.cross_entropy(x, targets, mask), logits)
    assert_close(reference.cross_entropy_gradient(logits, targets, mask), numerical, 1e-9)
