"""Linear maps whose weight gradients are computed in the order that a CPU reads fastest."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float

from tinygpt_jax import functional as F


def linear(
    x: Float[Array, "*batch i"], weight: Float[Array, "i o"], bias: Float[Array, " o"] | None = None
) -> Float[Array, "*batch o"]:
    """`functional.linear`, with all positions of the batch as the rows of one matrix, and `product_over_rows`."""
    y = _matrix_product(x.reshape(-1, x.shape[-1]), weight.astype(x.dtype))
    y = y if bias is None else y + bias.astype(y.dtype)[None, :]
    return y.reshape(*x.shape[:-1], weight.shape[-1])


@jax.custom_vjp
def _matrix_product(rows, weight):
    return rows @ weight


def _matrix_product_forward(rows, weight):
    return rows @ weight, (rows, weight)


def _matrix_product_backward(residuals, gradient):
    rows, weight = residuals
    return gradient @ weight.T, product_over_rows(rows, gradient)


_matrix_product.defvjp(_matrix_product_forward, _matrix_product_backward)


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
    return linear(F.relu(hidden) if activation == "relu" else F.gelu(hidden), weight_out, bias_out)
