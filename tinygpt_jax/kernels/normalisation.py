"""LayerNorm for NVIDIA GPUs: forward and backward each read what they need once, and write once.

XLA makes several kernels of each, because a reduction over features and one over rows do not share a loop in it.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from tinygpt_jax import functional
from tinygpt_jax.rows import on_each_device

_NUMBERS = {"forward": 4096, "backward": 2048}  # of the input, that a program works on at a time
_PROGRAMS = 1024  # of the backward pass: each sums over its share of the rows what goes to scale and bias


def layer_norm(
    x: Float[Array, "*batch d"],
    scale: Float[Array, " d"],
    bias: Float[Array, " d"],
    epsilon: float = 1e-5,
    *,
    interpret: bool = False,
) -> Float[Array, "*batch d"]:
    """`functional.layer_norm`. `interpret` runs the kernels as ordinary JAX, on any device and slowly."""
    rows = x.reshape(-1, x.shape[-1])
    if len(rows) % 128:  # few or odd rows, as in writing some texts
        return functional.layer_norm(x, scale, bias, epsilon)
    return _layer_norm(rows, scale, bias, epsilon, interpret).reshape(x.shape)  # pyright: ignore


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _layer_norm(rows, scale, bias, epsilon, interpret):
    return _forward(rows, scale, bias, epsilon, interpret)[0]


def _forward(rows, scale, bias, epsilon, interpret):
    def call(rows, scale, bias):
        block, width = _block(rows, "forward")
        of_rows, of_numbers, of_features = _specs(block, width)
        numbers = jax.ShapeDtypeStruct((len(rows),), jnp.float32)
        return pl.pallas_call(
            partial(_forward_kernel, features=rows.shape[1], epsilon=epsilon),
            grid=(len(rows) // block,),
            in_specs=[of_rows, of_features, of_features],
            out_specs=[of_rows, of_numbers, of_numbers],
            out_shape=[jax.ShapeDtypeStruct(rows.shape, rows.dtype), numbers, numbers],
            compiler_params=triton.CompilerParams(num_warps=4),
            interpret=interpret,
            name="layer_norm",
        )(rows, scale, bias)

    y, mean, rate = on_each_device(call, rows, scale, bias, whole=(1, 2))
    return y, (rows, scale, mean, rate)


def _backward(epsilon, interpret, residuals, gradient):
    def call(rows, scale, mean, rate, gradient):
        block, width = _block(rows, "backward")
        programs = math.gcd(len(rows) // block, _PROGRAMS)
        of_rows, of_numbers, of_features = _specs(len(rows) // programs, width)
        of_sums = pl.BlockSpec((None, width), lambda i: (i, 0))
        sums = jax.ShapeDtypeStruct((programs, rows.shape[1]), jnp.float32)
        return pl.pallas_call(
            partial(_backward_kernel, features=rows.shape[1], block=block),
            grid=(programs,),
            in_specs=[of_rows, of_features, of_numbers, of_numbers, of_rows],
            out_specs=[of_rows, of_sums, of_sums],
            out_shape=[jax.ShapeDtypeStruct(rows.shape, rows.dtype), sums, sums],
            compiler_params=triton.CompilerParams(num_warps=2),
            interpret=interpret,
            name="layer_norm_backward",
        )(rows, scale, mean, rate, gradient)

    rows, scale, mean, rate = residuals
    rows_gradient, scale_sums, bias_sums = on_each_device(call, rows, scale, mean, rate, gradient, whole=(1,))
    return rows_gradient, jnp.sum(scale_sums, axis=0), jnp.sum(bias_sums, axis=0)


_layer_norm.defvjp(_forward, _backward)


def _block(rows, direction):
    """How many rows a program works on at a time, and the power of two, as Triton wants it, that holds a row."""
    width = pl.next_power_of_2(rows.shape[1])
    return math.gcd(len(rows), max(1, min(32, _NUMBERS[direction] // width))), width


def _specs(rows, width):
    """Which part a program sees of the rows, of numbers one a row, and of vectors of features."""
    return (
        pl.BlockSpec((rows, width), lambda i: (i, 0)),
        pl.BlockSpec((rows,), lambda i: (i,)),
        pl.BlockSpec((width,), lambda i: (0,)),
    )


def _forward_kernel(x, scale, bias, y, mean, rate, *, features, epsilon):
    inside = _inside(x.shape, features)
    x32 = triton.load(x, mask=inside, other=0.0).astype(jnp.float32)
    average = jnp.sum(x32, axis=1) / features
    centred = jnp.where(inside, x32 - average[:, None], 0.0)
    inverse = jax.lax.rsqrt(jnp.sum(centred * centred, axis=1) / features + epsilon)
    scaled = centred * inverse[:, None] * _vector(scale, features)[None, :] + _vector(bias, features)[None, :]
    triton.store(y, scaled.astype(y.dtype), mask=inside)
    mean[:], rate[:] = average, inverse


def _backward_kernel(x, scale, mean, rate, gradient, x_gradient, scale_sum, bias_sum, *, features, block):
    weights = _vector(scale, features)
    inside = _inside((block, x.shape[1]), features)

    def add(i, sums):
        rows = pl.ds(i * block, block)
        x32, g = (triton.load(ref.at[rows, :], mask=inside, other=0.0).astype(jnp.float32) for ref in (x, gradient))
        normalised = jnp.where(inside, (x32 - mean[rows][:, None]) * rate[rows][:, None], 0.0)
        scaled = g * weights[None, :]
        along = jnp.sum(scaled * normalised, axis=1) / features
        centre = jnp.sum(scaled, axis=1) / features
        result = rate[rows][:, None] * (scaled - centre[:, None] - normalised * along[:, None])
        triton.store(x_gradient.at[rows, :], result.astype(x_gradient.dtype), mask=inside)
        return sums[0] + jnp.sum(g * normalised, axis=0), sums[1] + jnp.sum(g, axis=0)

    zeros = jnp.zeros(weights.shape, jnp.float32)
    sums = jax.lax.fori_loop(0, x.shape[0] // block, add, (zeros, zeros))
    for ref, total in zip((scale_sum, bias_sum), sums, strict=True):
        triton.store(ref, total, mask=_inside(total.shape, features))


def _vector(ref, features):
    return triton.load(ref, mask=_inside(ref.shape, features), other=0.0).astype(jnp.float32)


def _inside(shape, features):
    """True where the last axis, which is as long as a power of two, holds a feature."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1) < features
