"""Linear maps whose weight gradients are computed in the order that a CPU reads fastest."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from tinygpt_jax import functional as F


def linear(
    x: Float[Array, "*batch i"], weight: Float[Array, "i o"], bias: Float[Array, " o"] | None = None
) -> Float[Array, "*batch o"]:
    """`functional.linear`, with all positions of the batch as the rows of one matrix, and `product_over_rows`.

    What the rows say about weight and bias is summed in float32 and stays so, whatever the dtype of the rows.
    """
    y = _affine(x.reshape(-1, x.shape[-1]), weight, bias)
    return y.reshape(*x.shape[:-1], weight.shape[-1])  # pyright: ignore[reportAttributeAccessIssue]


@jax.custom_vjp
def _affine(rows, weight, bias):
    y = rows @ weight.astype(rows.dtype)
    return y if bias is None else y + bias.astype(y.dtype)[None, :]


def _affine_forward(rows, weight, bias):
    return _affine(rows, weight, bias), (rows, weight, bias)


def _affine_backward(residuals, gradient):
    rows, weight, bias = residuals
    bias_gradient = None if bias is None else jnp.sum(gradient, axis=0, dtype=bias.dtype)
    return gradient @ weight.astype(rows.dtype).T, product_over_rows(rows, gradient, weight.dtype), bias_gradient


_affine.defvjp(_affine_forward, _affine_backward)


def product_over_rows(
    a: Float[Array, "r i"], b: Float[Array, "r o"], dtype: DTypeLike | None = None
) -> Float[Array, "i o"]:
    """a.T @ b: what all rows together say about a weight. The result has `dtype`, or that of the arguments."""

    def product(a, b):
        return jnp.einsum("ri,ro->io", a, b, preferred_element_type=dtype)

    def product_on_cpu(a, b):
        # A tenth to a half faster with the narrower matrix on the left, laid out in the order in which it is read.
        # The barriers keep XLA from taking these transpositions out again.
        if a.shape[1] > b.shape[1]:
            return jax.lax.optimization_barrier(product_on_cpu(b, a)).T
        return jnp.matmul(jax.lax.optimization_barrier(a.T), b, preferred_element_type=dtype)

    return jax.lax.platform_dependent(a, b, cpu=product_on_cpu, default=product)


def feed_forward(
    x: Float[Array, "*batch d"],
    weight_in: Float[Array, "d f"],
    bias_in: Float[Array, " f"],
    weight_out: Float[Array, "f d"],
    bias_out: Float[Array, " d"],
    activation: Literal["relu", "gelu"] = "relu",
) -> Float[Array, "*batch d"]:
    """`functional.feed_forward`, of the linear maps above."""
    hidden = linear(x, weight_in, bias_in)
    return linear(_relu(hidden) if activation == "relu" else F.gelu(hidden), weight_out, bias_out)


@jax.custom_vjp
def _relu(x):
    """`functional.relu`, whose gradient needs the output, which is kept for the next product anyway."""
    return F.relu(x)


def _relu_forward(x):
    y = F.relu(x)
    return y, y


def _relu_backward(y, gradient):
    return (jnp.where(y > 0, gradient, jnp.zeros_like(gradient)),)


_relu.defvjp(_relu_forward, _relu_backward)
