"""A GPT from scratch in JAX and Flax that learns to write TinyStories."""

__version__ = "0.1.0"
