"""The contestants of `benchmark`: the same work, done with the libraries that one would use instead.

Each file has one or both of these classes. They live in processes of their own (`turns.py`), so that memory, start
and threads are measured one by one.

    Trainer(config).update(inputs, targets)  of int32 `[batch, context]`; returns the loss, which float() waits for
    Writer(config).write(prompts, length)    continues int32 `[rows, prompt]` greedily; returns int32 `[rows, length]`
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Contestant:
    """Who takes part."""

    name: str
    file: str  # in this folder
    library: str = "jax"  # what must be installed
    options: dict[str, Any] = field(default_factory=dict)  # for the class
    most_rows: int = 64  # writes at most this many texts side by side


OURS = Contestant("tinygpt_jax", "ours")
TRAINERS = (
    OURS,
    Contestant("Flax layers", "flax_layers"),
    Contestant("PyTorch", "torch_layers", "torch"),
    Contestant("PyTorch, compiled", "torch_layers", "torch", {"compiled": True}),
)
WRITERS = (
    OURS,
    Contestant("Hugging Face", "hugging_face", "transformers"),
    Contestant("no cache", "flax_layers", most_rows=1),  # more would take minutes
)
