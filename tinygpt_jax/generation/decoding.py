"""Decoding with a cache of keys and values: each token is read once.

The model sees a window of at most `context_length` tokens. When it is full, writing goes on from its last half, read
again from position 0.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from tinygpt_jax.config import Sampling
from tinygpt_jax.generation.sampling import as_scalars, mark_seen, next_token
from tinygpt_jax.model import GPT, LayerCache, empty_cache


def decode(
    model: GPT,
    params: Any,
    windows: Sequence[list[int]],
    keys: Key[Array, " b"],
    sampling: Sampling,
    end_of_text: int,
    max_new_tokens: int,
    stride: int,
) -> Iterator[np.ndarray]:
    """Continue token sequences of any lengths, side by side.

    Args:
        model: the model.
        params: its parameters.
        windows: what each row begins with, 1 to `context_length` tokens.
        keys: one for each row; the step is folded in.
        sampling: how tokens are chosen.
        end_of_text: the token that ends a row's text; what the row gets after it means nothing.
        max_new_tokens: how many tokens each row gets at most.
        stride: how many are fetched from the device at a time.

    Yields:
        The next tokens of all rows, int32 `[rows, at most stride]`, until all rows have ended or are long enough.
    """
    capacity, settings = model.config.context_length, as_scalars(sampling)
    ended = np.zeros(len(windows), bool)
    step, column, state = 0, capacity, None
    while step < max_new_tokens and not ended.all():
        if state is None or column == capacity:
            # A row is cut only when its own window is full, so that its text is that of the row alone.
            windows = [
                [end_of_text] if done else fit_window(window, capacity)
                for window, done in zip(windows, ended, strict=True)
            ]
            state = _read_windows(model, params, windows, ended, step, end_of_text)
            column = int(state.column)
        limit = min(stride, max_new_tokens - step)
        state, written = _write(model, params, state, keys, settings, limit, end_of_text)
        written, ended, column_after = jax.device_get((written, state.ended, state.column))
        written = written[:, column:column_after]
        windows = [[*window, *new] for window, new in zip(windows, written.tolist(), strict=True)]
        step, column = step + written.shape[1], int(column_after)
        yield written


def fit_window(window: list[int], context_length: int) -> list[int]:
    """The window itself if the model can see it whole, else as much of its end as half the context holds."""
    return window if len(window) <= context_length else window[-max(1, context_length // 2) :]


class _State(NamedTuple):
    """What decoding carries from token to token.

    A row's window stands in the columns start ... column of the cache, its last token still to be read. So rows of
    different lengths are aligned at their ends, and one column number serves all.
    """

    cache: tuple[LayerCache, ...]  # context_length columns
    seen: Bool[Array, "b v"]  # tokens of the window, without the last
    token: Int[Array, " b"]  # the last of the window
    ended: Bool[Array, " b"]
    column: Int[Array, ""]  # where `token` goes
    start: Int[Array, " b"]
    step: Int[Array, ""]  # tokens written


def _read_windows(model, params, windows, ended, step, end_of_text) -> _State:
    """Read all but the last token of each window into a fresh cache, in one pass.

    The width is rounded up to a power of two, so that few programs are compiled. What is read beyond the windows'
    end is written over before it is looked at.
    """
    column = max(map(len, windows)) - 1
    width = min(1 << max(column - 1, 0).bit_length(), model.config.context_length)
    start = np.array([column + 1 - len(window) for window in windows], np.int32)
    tokens = np.full((len(windows), width), end_of_text, np.int32)
    for row, window in enumerate(windows):
        tokens[row, start[row] : column] = window[:-1]
    cache, seen = _read(model, params, tokens, start, end_of_text)
    last = jnp.array([window[-1] for window in windows], jnp.int32)
    return _State(cache, seen, last, jnp.array(ended), jnp.int32(column), jnp.array(start), jnp.int32(step))


@partial(jax.jit, static_argnames="model")
def _read(model, params, tokens, start, end_of_text):
    rows, config = tokens.shape[0], model.config
    cache = empty_cache(config, rows, config.context_length, model.compute_dtype)
    _, cache = model.apply({"params": params}, tokens, cache, jnp.int32(0), start, method="decode")
    return cache, mark_seen(jnp.zeros((rows, config.vocab_size), bool), tokens, end_of_text)


@partial(jax.jit, static_argnames="model", donate_argnames="state")
def _write(model, params, state: _State, keys, settings, limit, end_of_text):
    """Write up to `limit` tokens, stopping when all rows have ended or the cache is full.

    Returns the new state and int32 `[b, context_length]`: in column c the token that was written when the one in
    column c of the cache had been read.
    """
    rows, capacity = state.token.shape[0], model.config.context_length
    last_step = state.step + limit

    def unfinished(carry):
        state, _ = carry
        return (state.step < last_step) & (state.column < capacity) & ~jnp.all(state.ended)

    def write_token(carry):
        state, written = carry
        read = (state.token[:, None], state.cache, state.column, state.start)
        logits, cache = model.apply({"params": params}, *read, method="decode")
        seen = mark_seen(state.seen, state.token[:, None], end_of_text)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
        token = next_token(step_keys, logits, seen, **settings)
        ended = state.ended | (token == end_of_text)
        written = written.at[:, state.column].set(token)
        return _State(cache, seen, token, ended, state.column + 1, state.start, state.step + 1), written

    return jax.lax.while_loop(unfinished, write_token, (state, jnp.zeros((rows, capacity), jnp.int32)))
