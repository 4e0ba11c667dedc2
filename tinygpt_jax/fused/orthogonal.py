"""Muon's Newton-Schulz iteration with less arithmetic, for CPUs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from tinygpt_jax import functional as F


def orthogonal_direction(matrix: Float[Array, "*batch m n"], steps: int = 5) -> Float[Array, "*batch m n"]:
    """`functional.orthogonal_direction`; on a CPU, of oblong matrices, by way of their Gram matrices.

    Every step multiplies X from the left by a polynomial of A = X X^T, P = a I + b A + c A^2, so that the next A is
    P A P. It is enough to iterate on A, which is as wide as the matrix's shorter side, to multiply the polynomials,
    and to multiply X once by what comes out. Of a matrix four times as long as wide that is 0.6 of the arithmetic.

    It needs float32: directions that the matrix lacks have eigenvalues of rounding errors, which become negative ones
    and grow 12 times in a step. A GPU rounds the factors of products to ten bits, and there the plain form stays.
    """
    if matrix.shape[-2] == matrix.shape[-1]:
        return F.orthogonal_direction(matrix, steps)
    return jax.lax.platform_dependent(
        matrix, cpu=lambda x: _by_gram_matrix(x, steps), default=lambda x: F.orthogonal_direction(x, steps)
    )


def _by_gram_matrix(matrix, steps):
    a, b, c = F.NEWTON_SCHULZ
    is_tall = matrix.shape[-2] > matrix.shape[-1]
    x = jnp.swapaxes(matrix, -1, -2) if is_tall else matrix
    x = x / (jnp.linalg.norm(x, axis=(-2, -1), keepdims=True) + 1e-7)
    gram = x @ jnp.swapaxes(x, -1, -2)
    identity = jnp.broadcast_to(jnp.eye(gram.shape[-1], dtype=x.dtype), gram.shape)
    product = identity
    for step in range(steps):
        polynomial = a * identity + b * gram + c * gram @ gram
        product = polynomial @ product if step else polynomial
        gram = polynomial @ gram @ polynomial  # of the last step nobody asks, and XLA leaves it out
    x = product @ x
    return jnp.swapaxes(x, -1, -2) if is_tall else x
