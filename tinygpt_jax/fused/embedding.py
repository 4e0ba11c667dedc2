"""The embedding with a gradient that no two threads compete for."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tinygpt_jax.rows import on_each_device


@jax.custom_vjp
def embed(table: Float[Array, "v d"], tokens: Int[Array, "*batch"]) -> Float[Array, "*batch d"]:
    """`functional.embed`, whose gradient adds up, per row of the table, what the row's occurrences receive."""
    return _lookup(table, tokens)


def _lookup(table, tokens):
    # Of a table that lies in parts on several devices, each gets all of it for its own rows: without this, XLA looks
    # all rows up in each part and exchanges what it found, which is as large as the batch's activations.
    return on_each_device(lambda table, tokens: table[tokens], table, tokens, whole=(0,))


def _embed_forward(table, tokens):
    return _lookup(table, tokens), (tokens, table.shape[0])


def _embed_backward(residuals, gradient):
    # Adding in order of the token keeps equal rows side by side. The plain scatter-add that autodiff writes
    # sends NVIDIA's threads to compete for the row of each frequent token: hundreds of times slower.
    # Several devices each make a table of their own rows: what they add up is then one table, not all rows.
    tokens, vocab_size = residuals

    def of_device(tokens, gradient):
        tokens = tokens.reshape(-1)
        order = jnp.argsort(tokens)
        rows = gradient.reshape(-1, gradient.shape[-1])[order]
        return jax.ops.segment_sum(rows, tokens[order], vocab_size, indices_are_sorted=True)[None]

    return jnp.sum(on_each_device(of_device, tokens, gradient), axis=0), None


embed.defvjp(_embed_forward, _embed_backward)
