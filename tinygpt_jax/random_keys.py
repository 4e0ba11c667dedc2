"""Random keys, handed out by purpose: no two purposes ever share numbers.

Nothing random is saved. Whoever needs a key folds into that of its purpose what it is for: the update, the sample.
"""

from typing import Literal

import jax
from jaxtyping import Array, Key

_NUMBERS = {"parameters": 0, "dropout": 1, "samples": 2}


def random_key(purpose: Literal["parameters", "dropout", "samples"], seed: int) -> Key[Array, ""]:
    """The key of a purpose under a seed."""
    return jax.random.fold_in(jax.random.key(seed), _NUMBERS[purpose])
