"""Decoding with a cache of keys and values: each token is read once.

The model sees a window of at most `context_length` tokens. When it is full, writing goes on from its last half, read
again from position 0.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Key

from tinygpt_jax.config import Sampling
from tinygpt_jax.generation.sampling import as_scalars, mark_seen, next_token
from tinygpt_jax.model import GPT, LayerCache, empty_cache

# Parameters that meet no activation in a product: the arithmetic takes them in float32, or only rows of them.
_NOT_IN_PRODUCTS = frozenset({"scale", "bias", "token_embedding", "position_embedding"})


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
    model, params = prepare(model, params)
    capacity, settings = model.config.context_length, as_scalars(sampling)
    rows, idle = len(windows), max(0, least_rows(jax.default_backend()) - len(windows))
    if idle:
        windows, keys = [*windows, *[[end_of_text]] * idle], jnp.resize(keys, (rows + idle,))
    ended = np.arange(rows + idle) >= rows
    step, state = 0, None
    while step < max_new_tokens and not ended.all():
        column = max(map(len, windows)) - 1
        if state is None or column == capacity:
            # A row is cut only when its own window is full, so that its text is that of the row alone.
            windows = [
                [end_of_text] if done else fit_window(window, capacity)
                for window, done in zip(windows, ended, strict=True)
            ]
            limit = 1
            state = _read_windows(model, params, windows, ended, keys, settings, step, end_of_text)
            written = state.token[:, None]
        else:
            limit = min(stride, max_new_tokens - step, capacity - column)
            state, written = _write(model, params, state, keys, settings, limit, end_of_text, stride)
        written = jax.device_get(written)[:, :limit]
        over = ended[:, None] | np.logical_or.accumulate(written == end_of_text, axis=1)
        written = written[:, : limit - max(0, over.all(axis=0).sum() - 1)]
        ended = over[:, -1]
        windows = [[*window, *new] for window, new in zip(windows, written.tolist(), strict=True)]
        step += written.shape[1]
        yield written[:rows]


def prepare(model: GPT, params: Any) -> tuple[GPT, Any]:
    """The model and its parameters as decoding takes them, which reads all of them for each token.

    What is multiplied with activations is cast to their dtype here, once. A tied head is given a copy of its own, in
    that dtype: of the embedding only rows are read. Without anything to cast all arrays stay those that they are.
    """

    if model.config.tie_embeddings:
        params = {**params, "head_weight": params["token_embedding"]}
        model = model.clone(config=replace(model.config, tie_embeddings=False))
    leaves, tree = jax.tree.flatten_with_path(params)
    leaves = dict(leaves)
    others = {
        path: leaf
        for path, leaf in leaves.items()
        if path[-1].key not in _NOT_IN_PRODUCTS and leaf.dtype != model.compute_dtype
    }
    if others:
        leaves |= dict(zip(others, _cast(list(others.values()), jnp.dtype(model.compute_dtype)), strict=True))
    return model, jax.tree.unflatten(tree, leaves.values())


@partial(jax.jit, static_argnames="dtype")
def _cast(arrays, dtype):
    return [array.astype(dtype) for array in arrays]


def least_rows(platform: str) -> int:
    """How many rows are decoded at least, with idle ones where there are fewer.

    For a single row, XLA for GPUs makes a product a sum of rounded products, and a LayerNorm three kernels.
    """
    return 1 if platform == "cpu" else 2


def fit_window(window: list[int], context_length: int) -> list[int]:
    """The window itself if the model can see it whole, else as much of its end as half the context holds."""
    return window if len(window) <= context_length else window[-max(1, context_length // 2) :]


class _State(NamedTuple):
    """What decoding carries from token to token.

    A row's window stands in the columns start ... column of the cache, its last token still to be read. So rows of
    different lengths are aligned at their ends, and one column number serves all.
    """

    cache: tuple[LayerCache, ...]  # context_length columns
    seen: Bool[Array, "b v"] | None  # tokens of the window, without the last; None if the sampling does not ask
    token: Int[Array, " b"]  # the last of the window
    ended: Bool[Array, " b"]
    column: Int[Array, ""]  # where `token` goes
    start: Int[Array, " b"]
    step: Int[Array, ""]  # tokens written


def _read_windows(model, params, windows, ended, keys, settings, step, end_of_text) -> _State:
    """Read the windows into a fresh cache, in one pass, and write a token.

    The width is rounded up to a power of two, so that few programs are compiled. What is read beyond the windows'
    end is written over before it is looked at.
    """
    length = max(map(len, windows))
    width = min(1 << (length - 1).bit_length(), model.config.context_length)
    start = np.array([length - len(window) for window in windows], np.int32)
    tokens = np.full((len(windows), width), end_of_text, np.int32)
    for row, window in enumerate(windows):
        tokens[row, start[row] : length] = window
    step, last = jnp.int32(step), jnp.int32(length - 1)
    return _read(model, params, tokens, last, start, ended, keys, settings, step, end_of_text)


@partial(jax.jit, static_argnames="model")
def _read(model, params, tokens, last, start, ended, keys, settings, step, end_of_text) -> _State:
    rows, config = tokens.shape[0], model.config
    seen = jnp.zeros((rows, config.vocab_size), bool) if "repetition_penalty" in settings else None
    cache = empty_cache(config, rows, config.context_length, model.compute_dtype)
    state = _State(cache, seen, tokens[:, 0], ended, jnp.int32(0), start, step)
    return _next(model, params, state, tokens, last, keys, settings, end_of_text)


@partial(jax.jit, static_argnames=("model", "stride"), donate_argnames="state")
def _write(model, params, state: _State, keys, settings, limit, end_of_text, stride):
    """Write up to `limit` tokens: on a CPU no more than until all rows have ended, elsewhere always `stride`.

    An accelerator would wait for the host before each token to hear whether there is to be another one. What it
    writes beyond the end, the limit or the cache means nothing.

    Returns the new state and int32 `[b, stride]`, the tokens.
    """

    def unfinished(carry):
        written, state, _ = carry
        return (written < limit) & ~jnp.all(state.ended)

    def go_on(carry):
        return jax.lax.platform_dependent(carry, cpu=unfinished, default=lambda carry: carry[0] < stride)

    def write_token(carry):
        written, state, tokens = carry
        state = _next(model, params, state, state.token[:, None], 0, keys, settings, end_of_text)
        return written + 1, state, jax.lax.dynamic_update_slice_in_dim(tokens, state.token[:, None], written, axis=1)

    tokens = jnp.zeros((state.token.shape[0], stride), jnp.int32)
    _, state, tokens = jax.lax.while_loop(go_on, write_token, (0, state, tokens))
    return state, tokens


def _next(model, params, state: _State, tokens, last, keys, settings, end_of_text) -> _State:
    """Read tokens, and write the one that follows the `last` of them."""
    read = (tokens, state.cache, state.column, state.start, last)
    logits, cache = model.apply({"params": params}, *read, method="decode")
    seen = None if state.seen is None else mark_seen(state.seen, tokens, end_of_text)
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
    token = next_token(step_keys, logits, seen, **settings)
    ended = state.ended | (token == end_of_text)
    return _State(cache, seen, token, ended, state.column + last + 1, state.start, state.step + 1)
