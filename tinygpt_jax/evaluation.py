"""How well a model predicts text: loss, perplexity, bits per byte and accuracy."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Integer

from tinygpt_jax import functional as F
from tinygpt_jax.data.batches import Batch, EvaluationBatches, Rows
from tinygpt_jax.data.corpus import Split
from tinygpt_jax.errors import UserError
from tinygpt_jax.model import GPT
from tinygpt_jax.tokenizer import Tokenizer

_EVALUATED_BYTES = 2**28  # evaluate as many positions at once as have logits of this size
_COUNTED_AT_ONCE = 2**24  # tokens; counting needs 8 bytes for each


@dataclass(frozen=True)
class Evaluation:
    """What a model makes of some tokens."""

    loss: float  # mean of -ln p(token), nats
    token_accuracy: float | None  # share of tokens that were the model's first guess; None: it has none
    tokens: int
    n_bytes: int | None = None  # UTF-8 bytes that the tokens spell, if counted

    @property
    def perplexity(self) -> float:
        """exp(loss): as uncertain as a fair choice among so many tokens."""
        return math.inf if self.loss > 700 else math.exp(self.loss)

    @property
    def bits_per_byte(self) -> float | None:
        """The loss of all tokens in bits over the bytes they spell: comparable between tokenizers."""
        return self.loss * self.tokens / math.log(2) / self.n_bytes if self.n_bytes else None


def evaluate(
    model: GPT, params: Any, batches: Iterable[Batch], token_bytes: Int[np.ndarray, " v"] | None = None
) -> Evaluation:
    """Measure `model` on all targets that the batches' masks let through.

    A batch's sums are float32 and stay on the device until the end, so that it is never waited for. The batches are
    added up in float64: a float32 total of ten million nats is good to a whole nat only.

    Args:
        model: the model.
        params: its parameters, left as they are.
        batches: of one shape, so that one program is compiled.
        token_bytes: how many bytes each token spells (`token_bytes(tokenizer)`), for bits per byte. A target counts
            with its own bytes, so these are right for any choice of targets, rows that cut stories included.

    Raises:
        UserError: there are no targets.
    """
    lengths = np.zeros(model.config.vocab_size, np.int32) if token_bytes is None else token_bytes.astype(np.int32)
    sums = [_batch_sums(model, params, *batch, lengths) for batch in batches]
    nats, correct, tokens, n_bytes = np.array(jax.device_get(sums), np.float64).reshape(-1, 4).sum(axis=0).tolist()
    if tokens == 0:
        raise UserError("there are no tokens to evaluate: the text is empty")
    return Evaluation(nats / tokens, correct / tokens, int(tokens), None if token_bytes is None else int(n_bytes))


def unigram(tokens: Integer[np.ndarray, " n"], token_bytes: Int[np.ndarray, " v"]) -> Evaluation:
    """The best that a model without context could do on some tokens: each one's probability is its frequency there."""
    counts = np.zeros(len(token_bytes), np.int64)
    for first in range(0, len(tokens), _COUNTED_AT_ONCE):
        counts += np.bincount(tokens[first : first + _COUNTED_AT_ONCE], minlength=len(counts))
    frequency = counts[counts > 0] / counts.sum()
    entropy = -np.sum(frequency * np.log(frequency))
    return Evaluation(float(entropy), float(frequency.max()), int(counts.sum()), int(counts @ token_bytes))


def token_bytes(tokenizer: Tokenizer) -> Int[np.ndarray, " v"]:
    """How many bytes each token spells; end-of-text spells none."""
    return np.array([len(tokenizer.decode_bytes([token])) for token in range(tokenizer.vocab_size)])


class StoryWindows(Rows):
    """Rows that show a model every token of a split once as a target, with as much of its own story as fits.

    A story is read from its beginning. One longer than the context goes on in windows that overlap by half, of
    which only the tokens not counted yet are targets, so that those have at least half a context before them. That
    is how text is generated, and it favours neither layout of training rows.
    """

    def __init__(self, split: Split, context_length: int, end_of_text: int) -> None:
        super().__init__(split, "padded", context_length, end_of_text)
        self.stride = max(1, context_length // 2)
        more = np.maximum(np.diff(split.offsets) - context_length, 0)  # tokens after the first window
        windows = 1 + -(-more // self.stride)
        self.story = np.repeat(np.arange(len(windows)), windows)
        self.number = np.arange(len(self.story)) - np.repeat(np.cumsum(windows) - windows, windows)  # in its story

    def __len__(self) -> int:
        return len(self.story)

    def take(self, indices: Int[np.ndarray, " rows"], shift: Int[np.ndarray, " rows"] | int = 0) -> Batch:
        """The windows of these numbers, in their order."""
        batch = super().take(indices, shift)
        is_new = np.arange(self.context_length) >= self.context_length - self.stride
        return batch._replace(mask=batch.mask & (is_new | (self.number[indices] == 0)[:, None]))

    def _runs(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        story = self.story[indices]
        return self.offsets[story] + self.stride * self.number[indices], self.offsets[story + 1]


def whole_stories(split: Split, context_length: int, batch_size: int, end_of_text: int) -> EvaluationBatches:
    """All `StoryWindows` of a split, in batches of one shape."""
    return EvaluationBatches(StoryWindows(split, context_length, end_of_text), batch_size)


def text_losses(model: GPT, params: Any, tokenizer: Tokenizer, text: str) -> tuple[list[int], Float[np.ndarray, " n"]]:
    """The tokens of a text and -ln p of each in nats, as `StoryWindows` reads a story. Its end is not predicted."""
    tokens = [*tokenizer.encode(text), tokenizer.end_of_text]
    split = Split(np.array(tokens, np.uint16), np.array([0, len(tokens)]), n_bytes=0, entropy=None)
    windows = StoryWindows(split, model.config.context_length, tokenizer.end_of_text)
    rows = (windows.take(np.array([number])) for number in range(len(windows)))
    nats = [np.asarray(_row_losses(model, params, row.inputs, row.targets))[row.mask] for row in rows]
    return tokens[:-1], np.concatenate(nats)[:-1]


@partial(jax.jit, static_argnames="model")
def _row_losses(model: GPT, params: Any, inputs: Int[Array, "b t"], targets: Int[Array, "b t"]) -> Float[Array, "b t"]:
    return F.token_losses(model.apply({"params": params}, inputs), targets)  # pyright: ignore[reportArgumentType]


@partial(jax.jit, static_argnames="model")
def _batch_sums(
    model: GPT,
    params: Any,
    inputs: Int[Array, "b t"],
    targets: Int[Array, "b t"],
    mask: Bool[Array, "b t"],
    token_bytes: Int[Array, " v"],
) -> tuple[Float[Array, ""], Int[Array, ""], Int[Array, ""], Int[Array, ""]]:
    """Sums over the targets of: loss in nats, correct first guesses, 1, bytes."""
    hidden = model.bind({"params": params}).hidden(inputs)

    def sums_at_position(position):
        hidden, targets, mask = position  # [b, d], [b], [b]
        logits = model.bind({"params": params}).logits(hidden[:, None])[:, 0]
        losses = F.token_losses(logits, targets)
        correct = jnp.argmax(logits, axis=-1) == targets
        return jnp.sum(jnp.where(mask, losses, 0.0)), jnp.sum(mask & correct)

    # All positions' logits together would be the largest array by far. Cutting time, not rows, leaves a batch
    # that is sharded over devices as it is.
    at_once = max(1, _EVALUATED_BYTES // (4 * inputs.shape[0] * model.config.vocab_size))
    positions = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), (hidden, targets, mask))
    nats, correct = jax.lax.map(sums_at_position, positions, batch_size=min(at_once, inputs.shape[1]))
    return jnp.sum(nats), jnp.sum(correct), jnp.sum(mask), jnp.sum(jnp.where(mask, token_bytes[targets], 0))
