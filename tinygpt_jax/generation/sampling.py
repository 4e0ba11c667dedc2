"""Choosing the next token: pure functions from logits to logits, and from logits to a token.

The settings are ordinary arguments, not part of the compiled program: changing one compiles nothing anew. No
function sorts the vocabulary; sorting 50,257 logits takes longer than computing them.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

from tinygpt_jax.errors import require

_BLOCK = 256  # tokens per block of `categorical`: about the square root of GPT-2's vocabulary


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. The settings act in the order repetition penalty, temperature, top-k, top-p."""

    temperature: float = 0.8  # divides the logits; 0 always takes the likeliest token
    top_k: int = 0  # choose among this many likeliest tokens (0: among all)
    top_p: float = 1.0  # choose among the fewest tokens that together hold this much probability
    repetition_penalty: float = 1.0  # above 1, tokens that the text already has become less likely

    def __post_init__(self) -> None:
        # Bounds far outside of use, within which float32 can work with the logits.
        for name, low, high, hint in (
            ("temperature", 0, 1000, ""),
            ("top_k", 0, 2**31 - 1, " (0 is off)"),
            ("repetition_penalty", 0.001, 1000, " (1 is off)"),
        ):
            value = getattr(self, name)
            require(low <= value <= high, name, value, f"must be between {low} and {high}{hint}")
        require(0 < self.top_p <= 1, "top_p", self.top_p, "must be above 0 and at most 1 (off)")


class SamplingValues(NamedTuple):
    """`Sampling` as arrays, for compiled functions."""

    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    top_p: Float[Array, ""]
    repetition_penalty: Float[Array, ""]

    @classmethod
    def of(cls, sampling: Sampling) -> "SamplingValues":
        """Convert."""
        return cls(
            jnp.float32(sampling.temperature),
            jnp.int32(sampling.top_k),
            jnp.float32(sampling.top_p),
            jnp.float32(sampling.repetition_penalty),
        )


def next_token(
    keys: Key[Array, " b"], logits: Float[Array, "b v"], seen: Bool[Array, "b v"], values: SamplingValues
) -> Int[Array, " b"]:
    """Choose a token for each row; `seen` says which tokens its text already has."""

    def sampled(logits):
        logits = scale_by_temperature(logits, values.temperature)
        logits = keep_top_p(keep_top_k(logits, values.top_k), values.top_p)
        return categorical(keys, logits)

    def likeliest(logits):
        return jnp.argmax(logits, axis=-1).astype(jnp.int32)

    logits = penalise_repetition(logits, seen, values.repetition_penalty)
    return jax.lax.cond(values.temperature > 0, sampled, likeliest, logits)


def mark_seen(seen: Bool[Array, "b v"], tokens: Int[Array, "b t"], end_of_text) -> Bool[Array, "b v"]:
    """Add tokens to the seen ones. End-of-text is not: it begins every text, and must stay able to end it."""
    return seen.at[jnp.arange(seen.shape[0])[:, None], tokens].set(tokens != end_of_text)


def penalise_repetition(
    logits: Float[Array, "b v"], seen: Bool[Array, "b v"], penalty: Float[Array, ""]
) -> Float[Array, "b v"]:
    """Divide the logits of seen tokens by the penalty (Keskar et al. 2019, CTRL, 4.1).

    Negative logits are multiplied, where the paper's formula would make them likelier.
    """
    penalised = jnp.where(logits > 0, logits / penalty, logits * penalty)
    return jnp.where(seen, penalised, logits)


def scale_by_temperature(logits: Float[Array, "b v"], temperature: Float[Array, ""]) -> Float[Array, "b v"]:
    """logits / T (Ackley et al. 1985), shifted so that the largest is 0, which a tiny T cannot make infinite."""
    return (logits - jnp.max(logits, axis=-1, keepdims=True)) / jnp.maximum(temperature, 1e-30)


def keep_top_k(logits: Float[Array, "b v"], k: Int[Array, ""]) -> Float[Array, "b v"]:
    """-inf for all but the k largest logits (Fan et al. 2018), and those equal to the k-th; 0 keeps all."""

    def cut(logits):
        probabilities = _unnormalised(logits)
        return _keep_heaviest(logits, probabilities, jnp.ones_like(logits), k.astype(jnp.float32))

    return jax.lax.cond(k > 0, cut, lambda logits: logits, logits)


def keep_top_p(logits: Float[Array, "b v"], p: Float[Array, ""]) -> Float[Array, "b v"]:
    """-inf for all but the nucleus: the fewest likeliest tokens whose probabilities add up to p or more.

    Holtzman et al. 2020, 3.1. Tokens as likely as the last of the nucleus are in it; 1 keeps all.
    """

    def cut(logits):
        probabilities = _unnormalised(logits)
        target = p * jnp.sum(probabilities, axis=-1, keepdims=True)
        return _keep_heaviest(logits, probabilities, probabilities, target)

    return jax.lax.cond(p < 1, cut, lambda logits: logits, logits)


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
    """Keep the likeliest tokens of each row, as few as have weights that add up to `target`; -inf for the others.

    Finds the smallest probability to keep by bisection. Floats from 0 to 1 are ordered as their bits are, so
    halving their range, which is below 2^30, 30 times leaves one float exactly.
    """

    def halve(_, low_high):
        low, high = low_high
        middle = (low + high) // 2
        kept = probabilities >= jax.lax.bitcast_convert_type(middle, jnp.float32)
        enough = jnp.sum(jnp.where(kept, weights, 0), axis=-1, keepdims=True) >= target
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    low = jnp.zeros((logits.shape[0], 1), jnp.int32)
    high = jnp.full_like(low, np.float32(1).view(np.int32) + 1)
    low, _ = jax.lax.fori_loop(0, 30, halve, (low, high))
    return jnp.where(probabilities >= jax.lax.bitcast_convert_type(low, jnp.float32), logits, -jnp.inf)
