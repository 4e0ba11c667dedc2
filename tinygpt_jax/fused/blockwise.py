"""Causal attention over a long context in memory that grows with its length, not with its square."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from tinygpt_jax import functional as F

LONG_CONTEXT = 512  # from this length on; below, the scores are small


def attention(
    query: Float[Array, "*heads q e"],
    key: Float[Array, "*heads k e"],
    value: Float[Array, "*heads k w"],
    mask: Bool[Array, "..."] | None = None,
    causal: bool = False,
) -> Float[Array, "*heads q w"]:
    """`functional.attention`, in blocks where a sequence looks at itself causally over a long context."""
    if causal and mask is None and query.shape[-2] >= LONG_CONTEXT and query.shape == key.shape == value.shape:
        return blockwise_attention(query, key, value)  # pyright: ignore[reportReturnType]
    return F.attention(query, key, value, mask, causal)


def self_attention(qkv: Float[Array, "b t d3"], n_heads: int) -> Float[Array, "b t d"]:
    """`functional.self_attention`, of the `attention` above."""
    query, key, value = (F.split_heads(part, n_heads) for part in jnp.split(qkv, 3, axis=-1))
    return F.merge_heads(attention(query, key, value, causal=True))


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def blockwise_attention(
    query: Float[Array, "*heads t e"],
    key: Float[Array, "*heads t e"],
    value: Float[Array, "*heads t e"],
    block: int = 128,
) -> Float[Array, "*heads t e"]:
    """`attention(query, key, value, causal=True)` in memory that grows with t, not with its square.

    Blocks of queries meet blocks of keys, one pair at a time and only where a query may look; a running maximum and
    sum give the softmax (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention, algorithms 1 and 4).

    Args:
        query, key, value: any leading axes (batch, heads), then positions, then the features of a head.
        block: positions in a block.
    """
    return _blockwise_forward(query, key, value, block)[0]


def _blockwise_forward(query, key, value, block):
    length, head_dim = query.shape[-2:]
    q, k, v = (_in_blocks(x, block) for x in (query, key, value))  # [blocks, *heads, block, e]
    scale = head_dim**-0.5

    def meet(carry, pair):
        largest, total, mixed = carry
        i, j = pair
        scores = _scores(q[i], k[j], i, j, scale)
        new_largest = jnp.maximum(largest[i], jnp.max(scores, axis=-1))
        exponents = jnp.exp(scores - new_largest[..., None])
        shrink = jnp.exp(largest[i] - new_largest)
        weighted = jnp.einsum("...qk,...ke->...qe", exponents.astype(value.dtype), v[j]).astype(jnp.float32)
        return (
            largest.at[i].set(new_largest),
            total.at[i].set(total[i] * shrink + jnp.sum(exponents, axis=-1)),
            mixed.at[i].set(mixed[i] * shrink[..., None] + weighted),
        ), None

    start = (
        jnp.full(q.shape[:-1], jnp.finfo(jnp.float32).min),
        jnp.zeros(q.shape[:-1], jnp.float32),
        jnp.zeros(q.shape, jnp.float32),
    )
    (largest, total, mixed), _ = jax.lax.scan(meet, start, _pairs(len(q)))
    out = (mixed / total[..., None]).astype(query.dtype)
    return _in_a_row(out, length), (query, key, value, out, largest + jnp.log(total))


def _blockwise_backward(block, residuals, gradient):
    query, key, value, out, log_total = residuals
    length, head_dim = query.shape[-2:]
    q, k, v, g = (_in_blocks(x, block) for x in (query, key, value, gradient))
    scale = head_dim**-0.5
    # Each query's sum of weight x gradient of weight, which the softmax's derivative subtracts.
    shared = jnp.sum(g.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

    def meet(carry, pair):
        q_gradient, k_gradient, v_gradient = carry
        i, j = pair
        weights = jnp.exp(_scores(q[i], k[j], i, j, scale) - log_total[i][..., None])
        weights_gradient = jnp.einsum("...qe,...ke->...qk", g[i], v[j], preferred_element_type=jnp.float32)
        scores_gradient = (weights * (weights_gradient - shared[i][..., None]) * scale).astype(query.dtype)
        return (
            q_gradient.at[i].add(jnp.einsum("...qk,...ke->...qe", scores_gradient, k[j])),
            k_gradient.at[j].add(jnp.einsum("...qk,...qe->...ke", scores_gradient, q[i])),
            v_gradient.at[j].add(jnp.einsum("...qk,...qe->...ke", weights.astype(value.dtype), g[i])),
        ), None

    start = tuple(jnp.zeros(q.shape, jnp.float32) for _ in range(3))
    gradients, _ = jax.lax.scan(meet, start, _pairs(len(q)))
    return tuple(_in_a_row(x, length).astype(query.dtype) for x in gradients)


blockwise_attention.defvjp(_blockwise_forward, _blockwise_backward)


def _scores(query, key, i, j, scale):
    """Scores of query block i and key block j, where a query may look; float32."""
    scores = jnp.einsum("...qe,...ke->...qk", query, key, preferred_element_type=jnp.float32) * scale
    block = scores.shape[-1]
    row, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, scores.ndim - 2 + axis) for axis in (0, 1))
    return jnp.where(j * block + column <= i * block + row, scores, jnp.finfo(jnp.float32).min)


def _pairs(blocks):
    """(query block, key block) for all pairs in which some query may look at some key."""
    pairs = [(i, j) for i in range(blocks) for j in range(i + 1)]
    return tuple(jnp.array(indices) for indices in zip(*pairs, strict=True))


def _in_blocks(x, block):
    """`[*heads, t, e]` as `[blocks, *heads, block, e]`; what is added at the end no earlier query looks at."""
    *heads, length, features = x.shape
    x = jnp.pad(x, [(0, 0)] * len(heads) + [(0, -length % block), (0, 0)])
    return jnp.moveaxis(x.reshape(*heads, -1, block, features), -3, 0)


def _in_a_row(blocks, length):
    """The inverse of `_in_blocks`."""
    x = jnp.moveaxis(blocks, 0, -3)
    return x.reshape(*x.shape[:-3], -1, x.shape[-1])[..., :length, :]
