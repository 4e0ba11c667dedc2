"""What a model says of given texts: log-probabilities of whole texts, and of chosen tokens at every place of them."""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from tinygpt_jax.data.batches import Batch, EvaluationBatches
from tinygpt_jax.data.corpus import Split
from tinygpt_jax.evaluation import StoryWindows
from tinygpt_jax.model import GPT
from tinygpt_jax.terminal import progress

_TOKENS_PER_BATCH = 4096


def log_probabilities(
    model: GPT, params: Any, texts: Sequence[Sequence[int]], candidates: Int[np.ndarray, "n k"], end_of_text: int
) -> Float[np.ndarray, "n k"]:
    """ln p of the candidates for each token of some texts, given what stands before it in its own text.

    A text longer than the context is read in windows, as `StoryWindows` reads a story.

    Args:
        model: the model.
        params: its parameters.
        texts: token ids; n in all.
        candidates: for each of the n places k tokens that could stand there.
        end_of_text: what the model reads before a text.
    """
    found = np.empty(candidates.shape, np.float32)
    for batch, places in _batches(texts, model.config.context_length, end_of_text):
        chosen = candidates[np.where(batch.mask, places, 0)]
        values = np.asarray(_candidates(model, params, batch.inputs, chosen))
        found[places[batch.mask]] = values[batch.mask]
    return found


def text_log_probabilities(
    model: GPT, params: Any, texts: Sequence[Sequence[int]], end_of_text: int
) -> Float[np.ndarray, " n"]:
    """ln p of n whole texts, in float64, without their end."""
    tokens = np.concatenate([np.asarray(text, np.int64) for text in texts])
    each = log_probabilities(model, params, texts, tokens[:, None], end_of_text)[:, 0].astype(np.float64)
    return np.add.reduceat(each, np.cumsum([0, *map(len, texts[:-1])]))


def _batches(texts: Sequence[Sequence[int]], context_length: int, end_of_text: int) -> Iterator[tuple[Batch, Any]]:
    """Rows of one shape, and for each target its place among the tokens of all texts."""
    offsets = np.cumsum([0, *map(len, texts)])
    # Each text is followed by its end, which is no target: before every text the model reads an end-of-text.
    ended = offsets + np.arange(len(offsets))
    tokens = np.full(ended[-1], end_of_text, np.int64)
    places = np.full(ended[-1], -1, np.int64)
    for text, first, place in zip(texts, ended, offsets, strict=False):
        tokens[first : first + len(text)] = text
        places[first : first + len(text)] = place + np.arange(len(text))
    length = min(context_length, max(map(len, texts)) + 1)
    size = max(1, _TOKENS_PER_BATCH // length)
    rows, numbers = (
        EvaluationBatches(StoryWindows(Split(array, ended, 0, None), length, end), size)
        for array, end in ((tokens, end_of_text), (places, -1))
    )
    for batch, numbered in zip(progress(rows, "reading", len(rows)), numbers, strict=True):
        yield batch._replace(mask=batch.mask & (numbered.targets >= 0)), numbered.targets


@partial(jax.jit, static_argnames="model")
def _candidates(
    model: GPT, params: Any, inputs: Int[Array, "b t"], candidates: Int[Array, "b t k"]
) -> Float[Array, "b t k"]:
    hidden = model.bind({"params": params}).hidden(inputs)

    def at_position(position):  # the logits of all positions at once would be the largest array by far
        hidden, candidates = position  # [b, d], [b, k]
        logits = model.bind({"params": params}).logits(hidden[:, None])[:, 0]
        return jnp.take_along_axis(logits, candidates, axis=-1) - jax.scipy.special.logsumexp(logits, -1, keepdims=True)

    by_position = jax.lax.map(at_position, jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (hidden, candidates)))
    return jnp.swapaxes(by_position, 0, 1)
