"""A GPT from scratch in JAX and Flax that learns to write TinyStories.

`tinygpt_jax.load(folder)` opens a trained model: docs/library.md. To read the code, begin with `functional`, the
formulas; then `model`, which owns the parameters; then `training.step`, one update.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinygpt_jax.library import Run as Run
    from tinygpt_jax.library import load as load

__all__ = ["Run", "load"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What `__all__` names is imported when it is first asked for: JAX takes a second to start."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tinygpt_jax import library

    return getattr(library, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
