"""The mathematics of the model: pure functions on arrays. Nothing here holds a parameter or knows a config.

Letters in shapes: b batch, t time (positions), q queries, k keys, h heads, d features of the residual stream,
e features of one head, f features of the feed-forward hidden layer, v vocabulary.

Dtypes, for every function: activations keep the dtype they come in (`x.dtype`, float32 or bfloat16); weights are
cast to it where they meet an activation; statistics, softmax and losses are computed in float32. `_spread(b, y)` is the
vector b in the dtype and with the rank of y, because nothing here is broadcast in silence.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

NEWTON_SCHULZ = 3.4445, -4.7750, 2.0315  # Jordan et al. 2024


def linear(
    x: Float[Array, "*batch i"], weight: Float[Array, "i o"], bias: Float[Array, " o"] | None = None
) -> Float[Array, "*batch o"]:
    """x W + b, applied to the last axis."""
    y = x @ weight.astype(x.dtype)
    return y if bias is None else y + _spread(bias, y)


def layer_norm(
    x: Float[Array, "*batch d"], scale: Float[Array, " d"], bias: Float[Array, " d"], epsilon: float = 1e-5
) -> Float[Array, "*batch d"]:
    """Give each position mean 0 and variance 1 over its features, then scale and shift (Ba et al. 2016, eq. 4)."""
    x32 = x.astype(jnp.float32)
    centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centred), axis=-1, keepdims=True)
    y = centred * jax.lax.rsqrt(variance + epsilon)
    return (y * _spread(scale, y) + _spread(bias, y)).astype(x.dtype)


def relu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """max(x, 0), with gradient 0 at 0 as Glorot et al. 2011 have it."""
    return jnp.where(x > 0, x, jnp.zeros_like(x))


def gelu(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """GELU in the tanh form that GPT-2 uses (Hendrycks & Gimpel 2016, section 2)."""
    inner = (2 / jnp.pi) ** 0.5 * (x + 0.044715 * x**3)
    return 0.5 * x * (1 + jnp.tanh(inner))


def feed_forward(
    x: Float[Array, "*batch d"],
    weight_in: Float[Array, "d f"],
    bias_in: Float[Array, " f"],
    weight_out: Float[Array, "f d"],
    bias_out: Float[Array, " d"],
    activation: Literal["relu", "gelu"] = "relu",
) -> Float[Array, "*batch d"]:
    """Two linear maps with a non-linearity between, at each position alone (Vaswani et al. 2017, eq. 2)."""
    hidden = linear(x, weight_in, bias_in)
    hidden = relu(hidden) if activation == "relu" else gelu(hidden)
    return linear(hidden, weight_out, bias_out)


def sinusoidal_encoding(length: int, d_model: int) -> Float[Array, "{length} {d_model}"]:
    """Fixed positions in float32: sin(p / 10000^(2i/d)) on feature 2i, cos on 2i + 1 (Vaswani et al. 2017, 3.5)."""
    position = jnp.arange(length, dtype=jnp.float32)[:, None]
    frequency = 10_000.0 ** (-jnp.arange(0, d_model, 2, dtype=jnp.float32) / d_model)[None, :]
    angle = position * frequency
    return jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1).reshape(length, d_model)


def rotary(
    qkv: Float[Array, "b t d3"], n_heads: int, positions: Int[Array, "#b t"], base: float = 10_000.0
) -> Float[Array, "b t d3"]:
    """Queries and keys turned by their positions, so that their products know the distance (Su et al. 2021, eq. 34).

    Features i and i + e/2 of each head are the plane that turns by the angle p / base^(2i/e). Values stay.

    Args:
        qkv: queries, keys and values side by side, each of them the features of all heads; e is even.
        n_heads: how many heads share the features.
        positions: p of each row, or of all.
        base: the slowest plane turns about 1 / base as fast as the first.
    """
    batch, length, features = qkv.shape
    half = features // (6 * n_heads)
    frequency = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angle = (positions[..., None].astype(jnp.float32) * frequency[None, None, :])[:, :, None, :]
    query_key, value = jnp.split(qkv, (2 * features // 3,), axis=-1)
    heads = query_key.reshape(batch, length, 2 * n_heads, 2 * half).astype(jnp.float32)
    x, y = jnp.split(heads, 2, axis=-1)
    sine, cosine = jnp.sin(angle), jnp.cos(angle)
    turned = jnp.concatenate([x * cosine - y * sine, y * cosine + x * sine], axis=-1).astype(qkv.dtype)
    return jnp.concatenate([turned.reshape(query_key.shape), value], axis=-1)


def orthogonal_direction(matrix: Float[Array, "*batch m n"], steps: int = 5) -> Float[Array, "*batch m n"]:
    """Roughly U V^T of the singular value decomposition U S V^T: all of the matrix's directions equally long.

    The Newton-Schulz iteration of Muon, X <- a X + (b A + c A^2) X with A = X X^T, whose coefficients bring singular
    values near 1 (0.7 to 1.2) in five steps and not exactly to 1 (Jordan et al. 2024).
    """
    a, b, c = NEWTON_SCHULZ
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = jnp.swapaxes(matrix, -1, -2) if is_tall else matrix
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    for _ in range(steps):
        gram = x @ jnp.swapaxes(x, -1, -2)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return jnp.swapaxes(x, -1, -2) if is_tall else x


def causal_mask(query_length: int, key_length: int | None = None) -> Bool[Array, "q k"]:
    """True where a query may look at a key: at its own position and before.

    With more keys than queries, the queries are the last positions of the keys (decoding with a cache).
    """
    key_length = query_length if key_length is None else key_length
    query_position = jnp.arange(key_length - query_length, key_length)[:, None]
    return jnp.arange(key_length)[None, :] <= query_position


def split_heads(x: Float[Array, "b t d"], n_heads: int) -> Float[Array, "b h t e"]:
    """Cut the features into heads and bring the head axis before time, which makes the products contiguous."""
    batch, length, d_model = x.shape
    return x.reshape(batch, length, n_heads, d_model // n_heads).transpose(0, 2, 1, 3)


def merge_heads(x: Float[Array, "b h t e"]) -> Float[Array, "b t d"]:
    """The inverse of `split_heads`."""
    batch, n_heads, length, head_dim = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, length, n_heads * head_dim)


def attention(
    query: Float[Array, "*heads q e"],
    key: Float[Array, "*heads k e"],
    value: Float[Array, "*heads k w"],
    mask: Bool[Array, "..."] | None = None,
    causal: bool = False,
) -> Float[Array, "*heads q w"]:
    """Scaled dot-product attention, softmax(Q K^T / sqrt(e)) V (Vaswani et al. 2017, eq. 1).

    Args:
        query, key, value: any leading axes (batch, heads), then positions, then the features of a head. Values may
            have another number w of them.
        mask: of the same rank as the scores `[*heads, q, k]`, or of rank 2; True where a query may look. Without
            one it may look everywhere. A query that may look nowhere gets zeros.
        causal: `causal_mask` takes the place of the mask.

    Raises:
        ValueError: there is a mask, and causal.
    """
    scale = query.shape[-1] ** -0.5
    scores = jnp.einsum("...qe,...ke->...qk", query, key, preferred_element_type=jnp.float32) * scale
    if causal:
        if mask is not None:
            raise ValueError("causal=True takes the place of the mask: give one of the two")
        mask = causal_mask(query.shape[-2], key.shape[-2])
    if mask is not None:
        mask = mask.reshape((1,) * (scores.ndim - mask.ndim) + mask.shape)
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    # Softmax, shifted by the largest score so that exp cannot overflow.
    exponents = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    weights = exponents / jnp.sum(exponents, axis=-1, keepdims=True)
    if mask is not None:
        weights = jnp.where(mask, weights, 0.0)  # matters for rows with nothing to look at
    return jnp.einsum("...qk,...ke->...qe", weights.astype(value.dtype), value)


def self_attention(qkv: Float[Array, "b t d3"], n_heads: int) -> Float[Array, "b t d"]:
    """Causal attention of a sequence to itself in several heads (Vaswani et al. 2017, 3.2.2).

    Args:
        qkv: queries, keys and values side by side, each of them the features of all heads.
        n_heads: how many heads share the features.
    """
    query, key, value = (split_heads(part, n_heads) for part in jnp.split(qkv, 3, axis=-1))
    return merge_heads(attention(query, key, value, causal=True))


def dropout(key: Key[Array, ""], x: Float[Array, "*shape"], rate: float) -> Float[Array, "*shape"]:
    """Set a random share of the features to 0 and scale the others up, so that the mean stays (Srivastava 2014).

    One random byte decides for one feature, four bytes from each random word: a quarter of the usual random
    numbers. The probability to keep is therefore rounded to k / 256, and 256 / k is the exact scale.
    """
    keep = max(1, round((1 - rate) * 256))
    if keep == 256:
        return x
    *leading, features = x.shape
    words = jax.random.bits(key, (*leading, -(-features // 4)), jnp.uint32)
    octets = jax.lax.bitcast_convert_type(words, jnp.uint8).reshape(*leading, -1)[..., :features]
    return jnp.where(octets < keep, x * (256 / keep), jnp.zeros_like(x))


def embed(table: Float[Array, "v d"], tokens: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
    """The table's row for each token."""
    return table[tokens]


def token_logits(hidden: Float[Array, "*batch d"], head: Float[Array, "v d"]) -> Float[Array, "*batch v"]:
    """How well each token's row of the head fits each hidden state: their product, in float32."""
    return jnp.einsum("...d,vd->...v", hidden, head.astype(hidden.dtype), preferred_element_type=jnp.float32)


def head_cross_entropy(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "v d"],
    targets: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None = None,
) -> Float[Array, ""]:
    """`cross_entropy` of the `token_logits` of hidden states."""
    return cross_entropy(token_logits(hidden, head), targets, mask)


def cross_entropy(
    logits: Float[Array, "*batch v"], targets: Int[Array, "*batch"], mask: Bool[Array, "*batch"] | None = None
) -> Float[Array, ""]:
    """Mean of -ln softmax(logits)[target] over the targets where mask is True, in nats; 0 when none is."""
    losses = token_losses(logits, targets)
    if mask is None:
        return jnp.mean(losses)
    return jnp.sum(jnp.where(mask, losses, 0.0)) / jnp.maximum(jnp.sum(mask), 1)


def token_losses(logits: Float[Array, "*batch v"], targets: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """-ln softmax(logits)[target] for each position, in nats, as ln(sum(exp(logits))) - logits[target]."""
    logits = logits.astype(jnp.float32)
    # Shifted before anything is added up: exp cannot overflow, and large logits keep their digits.
    logits = logits - jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    log_total = jnp.log(jnp.sum(jnp.exp(logits), axis=-1))
    return log_total - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]


def _spread(vector, like):
    return vector.astype(like.dtype).reshape((1,) * (like.ndim - 1) + vector.shape)
