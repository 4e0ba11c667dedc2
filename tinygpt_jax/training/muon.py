"""Muon: momentum whose directions are made equally long, for the matrices inside the blocks (Jordan et al. 2024)."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from tinygpt_jax.fused import orthogonal_direction

# An update as large as AdamW's usual one (Liu et al. 2025, 2.2: its root mean square is 0.2 to 0.4).
_LIKE_ADAMW = 0.2


class MuonState(NamedTuple):
    """The mean of the gradients, of each matrix."""

    momentum: Any


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Turn the gradients of matrices `[inputs, outputs]` into Muon's updates, before rate and decay.

    Nesterov's momentum, its directions equally long, times 0.2 sqrt(the larger side) (Liu et al. 2025, eq. 4). Queries,
    keys and values have a matrix each, though they lie in one.
    """

    def init(params: Any) -> MuonState:
        return MuonState(jax.tree.map(jnp.zeros_like, params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, MuonState]:
        mean = jax.tree.map(lambda m, g: momentum * m + g, state.momentum, updates)
        ahead = jax.tree.map(lambda m, g: momentum * m + g, mean, updates)
        return jax.tree.map_with_path(_direction, ahead), MuonState(mean)

    return optax.GradientTransformation(init, update)


def is_muons(path: Any, array: Any) -> bool:
    """Whether a parameter is a matrix inside a block: not an embedding or the head, whose rows are tokens."""
    return array.ndim == 2 and jax.tree_util.keystr(path[:1], simple=True).startswith("blocks_")


def _direction(path: Any, gradient: jax.Array) -> jax.Array:
    parts = 3 if "qkv" in jax.tree_util.keystr(path) else 1
    inputs, outputs = gradient.shape[0], gradient.shape[1] // parts
    matrices = gradient.reshape(inputs, parts, outputs).swapaxes(0, 1)
    update = orthogonal_direction(matrices) * (_LIKE_ADAMW * max(inputs, outputs) ** 0.5)
    return update.swapaxes(0, 1).reshape(gradient.shape)
