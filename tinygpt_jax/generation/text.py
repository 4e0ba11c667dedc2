"""Writing text with a trained model, from prompts to text.

What a sample says depends on its prompt, the sampling settings, the seed and the sample's number alone: not on the
samples beside it (beyond rounding), nor on whether it is streamed.
"""

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from tinygpt_jax.config import Sampling
from tinygpt_jax.errors import UserError, require
from tinygpt_jax.generation.decoding import decode
from tinygpt_jax.model import GPT
from tinygpt_jax.random_keys import random_key
from tinygpt_jax.terminal import progress
from tinygpt_jax.tokenizer import Tokenizer

_MAX_ROWS = 64  # samples decoded side by side; more are done in turns, which bounds the memory of the caches
_STRIDE = 64  # tokens fetched at a time
_STREAM_STRIDE = 4  # when streaming: smooth to the eye, and a fetch is rare enough

_MOST = 1_000_000  # tokens of a text, and texts; numbers beyond are slips


@dataclass(frozen=True)
class Sample:
    """One continuation of a prompt."""

    prompt: str
    text: str  # what the model wrote after the prompt
    tokens: list[int]  # the same in tokens, without end-of-text
    finished: bool  # the model ended the story; False: max_new_tokens did


def generate(
    model: GPT,
    params: Any,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    max_new_tokens: int,
    seed: int,
    num_samples: int = 1,
    show_progress: bool = False,
) -> list[Sample]:
    """Continue each prompt `num_samples` times; the samples of one prompt stand together.

    Args:
        model: decides the dtype of the arithmetic and of the cache.
        params: of any floating dtype.
        tokenizer: the one the model was trained with.
        prompts: an empty one starts a story.
        sampling: how tokens are chosen.
        max_new_tokens: where a text that has not ended is cut.
        seed: of all randomness. Sample i of a prompt is the same whatever the other prompts and num_samples.
        num_samples: how many continuations of each prompt.
        show_progress: say on standard error how far the work is, in tokens; stories that end early save some.

    Raises:
        UsageError: max_new_tokens, seed or num_samples is out of range.
        UserError: the tokenizer is another model's.
    """
    _check(model, tokenizer, max_new_tokens, seed)
    require(1 <= num_samples <= _MOST, "num_samples", num_samples, f"must be between 1 and {_MOST}")
    end_of_text = tokenizer.end_of_text
    windows = [encode_prompt(tokenizer, prompt, model.config.context_length)[0] for prompt in prompts]
    rows = [(window, number) for window in windows for number in range(num_samples)]
    written: list[list[int]] = [[] for _ in rows]

    def pieces() -> Iterator[tuple[int, np.ndarray]]:
        for first in range(0, len(rows), _MAX_ROWS):
            windows, numbers = zip(*rows[first : first + _MAX_ROWS], strict=True)
            keys = _sample_keys(seed, numbers)
            for piece in decode(model, params, windows, keys, sampling, end_of_text, max_new_tokens, stride=_STRIDE):
                yield first, piece

    most = len(rows) * max_new_tokens
    shown = progress(pieces(), "writing", most, count=lambda piece: piece[1].size) if show_progress else pieces()
    for first, piece in shown:
        for row, tokens in enumerate(piece.tolist(), first):
            written[row] += tokens
    samples = []
    for row, tokens in enumerate(written):
        story = _before_end(tokens, end_of_text)
        samples.append(Sample(prompts[row // num_samples], tokenizer.decode(story), story, len(story) < len(tokens)))
    return samples


def stream(
    model: GPT, params: Any, tokenizer: Tokenizer, prompt: str, sampling: Sampling, *, max_new_tokens: int, seed: int
) -> Iterator[str]:
    """The text of sample 0 of `generate`, in pieces as it is written; no piece ends within a character.

    Raises:
        UsageError, UserError: as `generate`, when the first piece is asked for.
    """
    _check(model, tokenizer, max_new_tokens, seed)
    window, _ = encode_prompt(tokenizer, prompt, model.config.context_length)
    keys, end_of_text = _sample_keys(seed, [0]), tokenizer.end_of_text
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for tokens in decode(model, params, [window], keys, sampling, end_of_text, max_new_tokens, stride=_STREAM_STRIDE):
        if text := utf8.decode(tokenizer.decode_bytes(_before_end(tokens[0].tolist(), end_of_text))):
            yield text
    if rest := utf8.decode(b"", final=True):
        yield rest


def encode_prompt(tokenizer: Tokenizer, prompt: str, context_length: int) -> tuple[list[int], int]:
    """What the model reads first, and how many of the prompt's first tokens do not fit in it.

    That is end-of-text, as before every story in training, and the prompt.
    """
    tokens = tokenizer.encode(prompt)
    return [tokenizer.end_of_text, *tokens][-context_length:], max(0, len(tokens) - context_length)


def _sample_keys(seed: int, numbers: Sequence[int]) -> Key[Array, " b"]:
    """A key for each sample; `decode` folds the step into it."""
    return jax.vmap(partial(jax.random.fold_in, random_key("samples", seed)))(jnp.array(numbers))


def _before_end(tokens: list[int], end_of_text: int) -> list[int]:
    return tokens[: tokens.index(end_of_text)] if end_of_text in tokens else tokens


def _check(model: GPT, tokenizer: Tokenizer, max_new_tokens: int, seed: int) -> None:
    require(1 <= max_new_tokens <= _MOST, "max_new_tokens", max_new_tokens, f"must be between 1 and {_MOST}")
    require(0 <= seed < 2**31, "seed", seed, "must be between 0 and 2147483647")
    if tokenizer.vocab_size != model.config.vocab_size:
        raise UserError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {model.config.vocab_size}: "
            "use the tokenizer that the model was trained with"
        )
