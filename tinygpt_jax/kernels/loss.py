"""The cross-entropy of logits for NVIDIA GPUs: the logits are read twice and overwritten by their gradient."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Bool, Float, Int

from tinygpt_jax.fused import loss
from tinygpt_jax.rows import on_each_device

_BLOCK = 2048  # logits that a program works on at a time


def head_cross_entropy(
    hidden: Float[Array, "b t d"],
    head: Float[Array, "v d"],
    targets: Int[Array, "b t"],
    mask: Bool[Array, "b t"] | None = None,
    *,
    chunks: int = 1,
    vocab_multiple: int = 1,
    interpret: bool = False,
) -> Float[Array, ""]:
    """`fused.head_cross_entropy`. `interpret` runs the kernel as ordinary JAX, on any device and slowly."""
    kernel = partial(_losses_and_gradient, interpret=interpret)
    return loss.arranged(hidden, head, targets, mask, chunks, vocab_multiple, kernel)


def _losses_and_gradient(logits, targets, weights, vocab_size, interpret):
    """`fused.loss.losses_and_gradient`. The gradient takes the place of the logits."""

    def call(logits, targets, weights):
        rows, width = targets.size, logits.shape[-1]
        of_row = pl.BlockSpec((None, pl.cdiv(width, _BLOCK) * _BLOCK), lambda i: (i, 0))
        of_number = pl.BlockSpec((None,), lambda i: (i,))
        like = jax.ShapeDtypeStruct((rows, width), logits.dtype)
        losses, gradient = pl.pallas_call(
            partial(_kernel, vocab_size=vocab_size, width=width),
            grid=(rows,),
            in_specs=[of_row, of_number, of_number],
            out_specs=[of_number, of_row],
            out_shape=[jax.ShapeDtypeStruct((rows,), jnp.float32), like],
            input_output_aliases={0: 1},
            compiler_params=triton.CompilerParams(num_warps=8),
            interpret=interpret,
            name="cross_entropy",
        )(logits.reshape(rows, width), targets.reshape(-1), weights.reshape(-1))
        return losses.reshape(targets.shape), gradient.reshape(logits.shape)

    return on_each_device(call, logits, targets, weights)


def _kernel(logits, targets, weights, losses, gradient, *, vocab_size, width):
    """Of one row: logits and gradient [v]; target, weight and loss are numbers."""
    target, weight = targets[...], weights[...]
    column = jax.lax.broadcasted_iota(jnp.int32, (_BLOCK,), 0)
    smallest = jnp.finfo(jnp.float32).min

    def read(block):
        there = pl.ds(block * _BLOCK, _BLOCK)
        inside = block * _BLOCK + column < vocab_size
        return triton.load(logits.at[there], mask=inside, other=smallest).astype(jnp.float32)

    def add(block, so_far):
        # Each thread keeps the largest logit of its own columns and a sum relative to it: one pass, in any order.
        largest, total = so_far
        x = read(block)
        new_largest = jnp.maximum(largest, x)
        return new_largest, total * jnp.exp(largest - new_largest) + jnp.exp(x - new_largest)

    blocks = pl.cdiv(width, _BLOCK)
    start = (jnp.full((_BLOCK,), smallest), jnp.zeros((_BLOCK,), jnp.float32))
    largest_of_columns, totals = jax.lax.fori_loop(0, blocks, add, start)
    largest = jnp.max(largest_of_columns)
    log_total = jnp.log(jnp.sum(totals * jnp.exp(largest_of_columns - largest)))
    # Shifted before anything is added up: large logits keep their digits.
    losses[...] = log_total - (logits[target].astype(jnp.float32) - largest)

    def write(block, _):
        place = block * _BLOCK + column
        probabilities = jnp.exp(read(block) - largest - log_total)
        there = jnp.where(place == target, probabilities - 1, probabilities) * weight
        triton.store(gradient.at[pl.ds(block * _BLOCK, _BLOCK)], there.astype(gradient.dtype), mask=place < width)

    jax.lax.fori_loop(0, blocks, write, None)
