"""Which functions a model computes with: the plain formulas, or what is arranged for the machine at hand."""

import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

from tinygpt_jax import functional, fused
from tinygpt_jax.config import Arithmetic
from tinygpt_jax.devices import AMPERE, nvidia_generation
from tinygpt_jax.errors import UsageError, require


def resolve_arithmetic(name: Arithmetic = "auto", device: Any = None) -> ModuleType:
    """The module for `GPT.arithmetic`. `auto` is `kernels` on an NVIDIA GPU that runs them, elsewhere `fused`.

    `device` is by default the one that JAX runs on.

    Raises:
        UsageError: kernels were asked for, and the device cannot run them.
    """
    able = nvidia_generation(device) >= AMPERE
    if name == "kernels" and not able:
        raise UsageError(
            "arithmetic kernels: they are for NVIDIA GPUs of Ampere (2020) and later; give another, or none"
        )
    if name == "kernels" or (name == "auto" and able):
        from tinygpt_jax import kernels  # imports Pallas, for which a machine without a GPU need not wait

        return kernels
    return functional if name == "plain" else fused


def functional_with(**functions: Callable[..., Any]) -> ModuleType:
    """A copy of the module `functional` in which the functions of these names are yours, for `GPT.arithmetic`.

    What else is in the copy calls yours: `attention` serves training and decoding, `relu` is called in `feed_forward`.

    Raises:
        UsageError: `functional` has no function of such a name.
    """
    own = (name for name, value in vars(functional).items() if getattr(value, "__module__", "") == functional.__name__)
    known = [name for name in own if not name.startswith("_")]
    for name in functions:
        require(name in known, "functional_with", name, f"there is no such function; there are {', '.join(known)}")
    copy = importlib.util.module_from_spec(functional.__spec__)
    functional.__spec__.loader.exec_module(copy)
    vars(copy).update(functions)
    return copy
