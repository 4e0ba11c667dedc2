"""Choosing the next token: pure functions from logits to logits, and from logits to a token.

Which rules act is part of the compiled program, which does no work for the others. Their settings are ordinary
arguments: changing one compiles nothing anew. No function sorts the vocabulary; sorting 50,257 logits takes longer
than computing them.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from tinygpt_jax.config import Sampling

Scalar = Float[Array, ""]

_BLOCK = 256  # tokens per block of `categorical`: about the square root of GPT-2's vocabulary


def as_scalars(sampling: Sampling) -> dict[str, Scalar]:
    """The settings of the rules that act, as arguments of `next_token`."""
    acting = {"repetition_penalty": sampling.repetition_penalty != 1}
    if sampling.temperature > 0:  # at 0 the likeliest token is taken, which top-k and top-p always keep
        acting |= {"temperature": True, "top_k": sampling.top_k > 0, "top_p": sampling.top_p < 1}
    return {name: jnp.float32(getattr(sampling, name)) for name, acts in acting.items() if acts}


def next_token(
    keys: Key[Array, " b"],
    logits: Float[Array, "b v"],
    seen: Bool[Array, "b v"] | None,
    temperature: Scalar | None = None,
    top_k: Scalar | None = None,
    top_p: Scalar | None = None,
    repetition_penalty: Scalar | None = None,
) -> Int[Array, " b"]:
    """Choose a token for each row as `config.Sampling` says, with the rules that have a setting.

    `seen` are the tokens that a row's text already has; only the penalty asks for them. Without a temperature the
    likeliest token is taken.
    """
    if repetition_penalty is not None:
        logits = penalise_repetition(logits, seen, repetition_penalty)  # pyright: ignore[reportArgumentType]
    if temperature is None:
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)
    logits = scale_by_temperature(logits, temperature)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return categorical(keys, logits)


def mark_seen(seen: Bool[Array, "b v"], tokens: Int[Array, "b t"], end_of_text) -> Bool[Array, "b v"]:
    """Add tokens to the seen ones. End-of-text is not: it begins every text, and must stay able to end it."""
    return seen.at[jnp.arange(seen.shape[0])[:, None], tokens].set(tokens != end_of_text)


def penalise_repetition(logits: Float[Array, "b v"], seen: Bool[Array, "b v"], penalty: Scalar) -> Float[Array, "b v"]:
    """Divide the logits of seen tokens by the penalty (Keskar et al. 2019, CTRL, 4.1).

    Negative logits are multiplied, where the paper's formula would make them likelier.
    """
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, penalised, logits)


def scale_by_temperature(logits: Float[Array, "b v"], temperature: Scalar) -> Float[Array, "b v"]:
    """logits / T (Ackley et al. 1985), shifted so that the largest is 0, which a tiny T cannot make infinite."""
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.maximum(temperature, 1e-30)


def keep_top_k(logits: Float[Array, "b v"], k: Scalar) -> Float[Array, "b v"]:
    """-inf for all but the k largest logits (Fan et al. 2018), and those equal to the k-th."""
    return _keep_heaviest(logits, _unnormalised(logits), jnp.ones_like(logits), k)


def keep_top_p(logits: Float[Array, "b v"], p: Scalar) -> Float[Array, "b v"]:
    """-inf for all but the nucleus: the fewest likeliest tokens whose probabilities add up to p or more.

    Holtzman et al. 2020, 3.1. Tokens as likely as the last of the nucleus are in it.
    """
    probabilities = _unnormalised(logits)
    target = p * jnp.sum(probabilities, axis=-1, keepdims=True)
    return _keep_heaviest(logits, probabilities, probabilities, target)


def categorical(keys: Key[Array, " b"], logits: Float[Array, "b v"]) -> Int[Array, " b"]:
    """A token for each row with probability softmax(logits).

    First a block of tokens by its total probability, then a token within it: p(block) p(token | block) = p(token).
    So a row needs hundreds of random numbers, not one for each token of the vocabulary, which would take a quarter
    of the time of decoding on a CPU.
    """
    logits = jnp.pad(logits, ((0, 0), (0, -logits.shape[1] % _BLOCK)), constant_values=-jnp.inf)
    blocks = logits.reshape(logits.shape[0], -1, _BLOCK)
    block_logits = jnp.log(jnp.sum(_unnormalised(logits).reshape(blocks.shape), axis=-1))

    def choose(key, block_logits, blocks):
        block_key, token_key = jax.random.split(key)
        block = jax.random.categorical(block_key, block_logits)
        return block * _BLOCK + jax.random.categorical(token_key, blocks[block])

    return jax.vmap(choose)(keys, block_logits, blocks).astype(jnp.int32)


def _unnormalised(logits):
    """Probabilities times a constant of the row: exp(logits), the largest 1."""
    return jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True))


def _keep_heaviest(logits, probabilities, weights, target):
    """Keep the likeliest tokens of each row, as few as have weights that add up to `target`; -inf for the others."""
    search = [partial(_smallest_kept, ways=ways) for ways in (2, 32)]  # a GPU does many comparisons in one kernel
    smallest = jax.lax.platform_dependent(probabilities, weights, target, cpu=search[0], default=search[1])
    return jnp.where(probabilities >= smallest, logits, -jnp.inf)


def _smallest_kept(probabilities, weights, target, ways):
    """The largest float `[b, 1]` such that the probabilities from it on have weights that add up to `target`.

    Floats from 0 to 1 are ordered as their bits are. So this looks for a whole number below 2^30, in steps that each
    leave one part in `ways` of the numbers that are still possible.
    """

    def narrow(_, low_high):
        low, high = low_high
        part = (high - low + ways - 1) // ways
        candidates = low + part * jnp.arange(1, ways)[None, :]
        kept = probabilities[:, None, :] >= jax.lax.bitcast_convert_type(candidates, jnp.float32)[:, :, None]
        enough = jnp.sum(jnp.where(kept, weights[:, None, :], 0), axis=-1) >= target
        low += part * jnp.sum(enough, axis=-1, keepdims=True)
        return low, jnp.minimum(low + part, high)

    low = jnp.zeros((probabilities.shape[0], 1), jnp.int32)
    high = jnp.full_like(low, np.float32(1).view(np.int32) + 1)
    low, _ = jax.lax.fori_loop(0, 30 // (ways.bit_length() - 1), narrow, (low, high))
    return jax.lax.bitcast_convert_type(low, jnp.float32)
