"""A GPT from scratch in JAX and Flax that learns to write TinyStories.

Read `functional` first, the formulas; then `model`, which owns the parameters; then `training.step`, one update.
"""

__version__ = "0.1.0"
