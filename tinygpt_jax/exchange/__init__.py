"""Models out and in: for Hugging Face's libraries, for other programs, and from either.

`open_model` reads whatever holds a model: a run, an exported folder, a GPT-2, by its path or its name at the hub.
"""

from tinygpt_jax.exchange.opening import import_model, open_model

__all__ = ["import_model", "open_model"]
