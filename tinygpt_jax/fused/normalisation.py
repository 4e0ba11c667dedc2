"""LayerNorm with a gradient that reads its input and two numbers a position, and writes nothing between."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "*batch d"], scale: Float[Array, " d"], bias: Float[Array, " d"], epsilon: float = 1e-5
) -> Float[Array, "*batch d"]:
    """`functional.layer_norm`; its backward pass keeps mean and rate instead of computing them anew."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(x, scale, bias, epsilon):
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, axis=-1, keepdims=True)
    centred = x32 - mean
    rate = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)
    y = centred * rate * _spread(scale, x) + _spread(bias, x)
    return y.astype(x.dtype), (x, scale, mean, rate)


def _layer_norm_backward(epsilon, residuals, gradient):
    x, scale, mean, rate = residuals
    mean, rate = jax.lax.optimization_barrier((mean, rate))  # or XLA computes them anew
    normalised = (x.astype(jnp.float32) - mean) * rate
    g = gradient.astype(jnp.float32)
    scaled = g * _spread(scale, x)
    along = jnp.mean(scaled * normalised, axis=-1, keepdims=True)
    x_gradient = rate * (scaled - jnp.mean(scaled, axis=-1, keepdims=True) - normalised * along)
    # Both sums over the rows in one reading of the gradient.
    rows = tuple(range(x.ndim - 1))
    zeros = (jnp.float32(0), jnp.float32(0))
    scale_gradient, bias_gradient = jax.lax.reduce(
        (g * normalised, g), zeros, lambda a, b: (a[0] + b[0], a[1] + b[1]), rows
    )
    return x_gradient.astype(x.dtype), scale_gradient, bias_gradient


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _spread(vector, like):
    return vector.astype(jnp.float32).reshape((1,) * (like.ndim - 1) + vector.shape)
