"""Causal self-attention for NVIDIA GPUs, in kernels written by hand: no score ever leaves the chip.

In plain JAX the scores `[b, h, t, t]` and the weights made of them are written to the GPU's memory and read again, and
queries, keys and values are copied apart by head before they meet. Here each program of a kernel takes a block of
queries of one head of one sequence, reads what it needs where the product left it, and keeps a running maximum and sum
of its softmax (Milakov & Gimelshein 2018; Dao et al. 2022, FlashAttention, algorithms 1 and 4). The backward kernels
compute the weights anew from the sums.

The kernels are written in Pallas, which hands them to Triton: `ref[rows]` loads a block from the GPU's memory, values
between loads and stores live in registers, and products run on tensor cores.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from tinygpt_jax import fused
from tinygpt_jax.rows import on_each_device

_WHOLE = 128  # positions of a sequence up to which one program takes it whole
_BLOCK = 64  # queries or keys that meet at a time in longer ones
_LEAST = 16  # rows or features that a tensor core multiplies
_MOST_BYTES = 256  # of a row of a head: 64 of them are to fit the smallest shared memory several times


def self_attention(qkv: Float[Array, "b t d3"], n_heads: int, *, interpret: bool = False) -> Float[Array, "b t d"]:
    """`functional.self_attention`, in memory that grows with t, not with its square.

    `interpret` runs the kernels as ordinary JAX, on any device and slowly, as the tests do.
    """
    batch, length, features = qkv.shape
    head_dim = features // (3 * n_heads)
    fits = head_dim >= _LEAST and head_dim * qkv.dtype.itemsize <= _MOST_BYTES
    if not fits or head_dim & (head_dim - 1):  # Triton's blocks are powers of two
        return fused.self_attention(qkv, n_heads)
    block = max(_LEAST, pl.next_power_of_2(length)) if length <= _WHOLE else _BLOCK
    # What is added at the end no earlier query looks at.
    padded = jnp.pad(qkv, ((0, 0), (0, -length % block), (0, 0)))
    mixed = _attention(padded.reshape(batch, -1, 3, n_heads, head_dim), block, interpret)
    return mixed.reshape(batch, -1, n_heads * head_dim)[:, :length]  # pyright: ignore[reportAttributeAccessIssue]


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _attention(qkv, block, interpret):
    """Of queries, keys and values `[b, t, 3, h, e]`: `[b, t, h, e]`. The block divides t."""
    return _forward(qkv, block, interpret)[0]


def _forward(qkv, block, interpret):
    batch, length, _, heads, head_dim = qkv.shape
    out = jax.ShapeDtypeStruct((batch, length, heads, head_dim), qkv.dtype)
    log_total = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    out, log_total = _run(_forward_kernel, 2, (qkv,), (out, log_total), block, interpret)
    return out, (qkv, out, log_total)


def _backward(block, interpret, residuals, gradient):
    qkv, out, log_total = residuals
    run = partial(_run, block=block, interpret=interpret)
    if qkv.shape[1] == block:  # the whole sequence is one block: one kernel gives all gradients
        like = jax.ShapeDtypeStruct(qkv.shape, qkv.dtype)
        return tuple(run(_whole_backward_kernel, 5, (qkv, log_total, gradient), (like,)))
    given = (qkv, out, log_total, gradient)
    like = jax.ShapeDtypeStruct(out.shape, out.dtype)
    (by_query,) = run(_query_backward_kernel, 3, given, (like,))
    by_key, by_value = run(_key_backward_kernel, 4, given, (like, like))
    return (jnp.stack([by_query, by_key, by_value], axis=2),)


_attention.defvjp(_forward, _backward)


def _run(kernel, products, arrays, results, block, interpret):
    """Run a kernel with a program for each sequence, head and block of rows; a program sees its head alone.

    Each pair of a query's and a key's block that it looks at takes so many products.
    """

    def call(*arrays):
        batch, length, _, heads, head_dim = arrays[0].shape
        of_head = {
            5: pl.BlockSpec((None, length, 3, None, head_dim), lambda b, h, i: (b, 0, 0, h, 0)),  # [b, t, 3, h, e]
            4: pl.BlockSpec((None, length, None, head_dim), lambda b, h, i: (b, 0, h, 0)),  # [b, t, h, e]
            3: pl.BlockSpec((None, None, length), lambda b, h, i: (b, h, 0)),  # [b, h, t]
        }
        blocks = length // block
        flops = batch * heads * blocks * (blocks + 1) // 2 * products * 2 * block**2 * head_dim
        exponents = flops // (2 * products * head_dim)
        out_shape = [x.update(shape=(batch, *x.shape[1:])) for x in results]
        size = sum(x.size * x.dtype.itemsize for x in (*arrays, *out_shape))
        return pl.pallas_call(
            partial(kernel, block=block),
            grid=(batch, heads, blocks),
            cost_estimate=pl.CostEstimate(flops=flops, transcendentals=exponents, bytes_accessed=size),
            in_specs=[of_head[x.ndim] for x in arrays],
            out_specs=[of_head[len(x.shape)] for x in results],
            out_shape=out_shape,
            compiler_params=triton.CompilerParams(num_warps=8 if block > _BLOCK else 4, num_stages=2),
            interpret=interpret,
            name=kernel.__name__.strip("_"),
        )(*arrays)

    return on_each_device(call, *arrays)


# In the kernels: qkv and its gradient [t, 3, e]; out and other gradients [t, e]; log_total [t].
_dot = partial(jax.lax.dot_general, preferred_element_type=jnp.float32)
_NN, _NT, _TN = (((1,), (0,)), ((), ())), (((1,), (1,)), ((), ())), (((0,), (0,)), ((), ()))  # a b, a b^T, a^T b


def _forward_kernel(qkv, out, log_total, *, block):
    i = pl.program_id(2)
    query = _read(qkv, i, 0, block)

    def meet(j, carry):
        largest, total, mixed = carry
        key, value = (_read(qkv, j, part, block) for part in (1, 2))
        scores = _scores(query, key, i, j)
        new_largest = jnp.maximum(largest, jnp.max(scores, axis=1))
        exponents = jnp.exp(scores - new_largest[:, None])
        shrink = jnp.exp(largest - new_largest)
        mixed = mixed * shrink[:, None] + _dot(exponents.astype(value.dtype), value, _NN)
        return new_largest, total * shrink + jnp.sum(exponents, axis=1), mixed

    smallest = jnp.full((block,), jnp.finfo(jnp.float32).min)
    start = (smallest, jnp.zeros((block,), jnp.float32), jnp.zeros(query.shape, jnp.float32))
    largest, total, mixed = jax.lax.fori_loop(0, i + 1, meet, start)
    out[_rows(i, block)] = (mixed / total[:, None]).astype(out.dtype)
    log_total[_rows(i, block)] = largest + jnp.log(total)


def _whole_backward_kernel(qkv, log_total, gradient, qkv_gradient, *, block):
    query, key, value = (_read(qkv, 0, part, block) for part in range(3))
    g = gradient[:, :]
    weights = jnp.exp(_scores(query, key, 0, 0) - log_total[:][:, None])
    qkv_gradient[:, 2] = _dot(weights.astype(g.dtype), g, _TN).astype(g.dtype)
    weights_gradient = _dot(g, value, _NT)
    shared = jnp.sum(weights * weights_gradient, axis=1)
    scores_gradient = _scores_gradient(weights, weights_gradient, shared, query)
    qkv_gradient[:, 0] = _dot(scores_gradient, key, _NN).astype(g.dtype)
    qkv_gradient[:, 1] = _dot(scores_gradient, query, _TN).astype(g.dtype)


def _query_backward_kernel(qkv, out, log_total, gradient, query_gradient, *, block):
    i = pl.program_id(2)
    rows = _rows(i, block)
    query, g, total = _read(qkv, i, 0, block), gradient[rows], log_total[rows]
    shared = _shared(out[rows], g)

    def meet(j, so_far):
        key, value = (_read(qkv, j, part, block) for part in (1, 2))
        weights = jnp.exp(_scores(query, key, i, j) - total[:, None])
        scores_gradient = _scores_gradient(weights, _dot(g, value, _NT), shared, query)
        return so_far + _dot(scores_gradient, key, _NN)

    start = jnp.zeros(query.shape, jnp.float32)
    query_gradient[rows] = jax.lax.fori_loop(0, i + 1, meet, start).astype(query_gradient.dtype)


def _key_backward_kernel(qkv, out, log_total, gradient, key_gradient, value_gradient, *, block):
    j = pl.program_id(2)
    key, value = (_read(qkv, j, part, block) for part in (1, 2))

    def meet(i, so_far):
        rows = _rows(i, block)
        query, g = _read(qkv, i, 0, block), gradient[rows]
        weights = jnp.exp(_scores(query, key, i, j) - log_total[rows][:, None])
        scores_gradient = _scores_gradient(weights, _dot(g, value, _NT), _shared(out[rows], g), query)
        return (
            so_far[0] + _dot(scores_gradient, query, _TN),
            so_far[1] + _dot(weights.astype(g.dtype), g, _TN),
        )

    start = (jnp.zeros(key.shape, jnp.float32),) * 2
    sums = jax.lax.fori_loop(j, pl.num_programs(2), meet, start)
    for gradient_of, total in zip((key_gradient, value_gradient), sums, strict=True):
        gradient_of[_rows(j, block)] = total.astype(gradient_of.dtype)


def _rows(i, block):
    return pl.ds(i * block, block)


def _read(qkv, i, part, block):
    """Block i of the queries (part 0), keys (1) or values (2)."""
    return qkv[_rows(i, block), part]


def _scores(query, key, i, j):
    """Scores of query block i and key block j, where a query may look; float32 `[q, k]`."""
    scores = _dot(query, key, _NT) * query.shape[-1] ** -0.5
    row, column = (jax.lax.broadcasted_iota(jnp.int32, scores.shape, axis) for axis in (0, 1))
    rows, columns = scores.shape
    return jnp.where(j * columns + column <= i * rows + row, scores, jnp.finfo(jnp.float32).min)


def _shared(out, gradient):
    """Each query's sum of weight x gradient of weight, which the softmax's derivative subtracts."""
    return jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), axis=1)


def _scores_gradient(weights, weights_gradient, shared, query):
    scale = query.shape[-1] ** -0.5
    return (weights * (weights_gradient - shared[:, None]) * scale).astype(query.dtype)
