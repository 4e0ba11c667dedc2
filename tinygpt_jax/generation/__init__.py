"""From prompts to stories: the text, decoding with a cache, and the choice of each token."""

from importlib import import_module
from typing import TYPE_CHECKING

from tinygpt_jax.generation.sampling import Sampling as Sampling

if TYPE_CHECKING:
    from tinygpt_jax.generation.text import Sample as Sample
    from tinygpt_jax.generation.text import encode_prompt as encode_prompt
    from tinygpt_jax.generation.text import generate as generate
    from tinygpt_jax.generation.text import stream as stream


def __getattr__(name: str):
    # Late, because the settings alone need no model and no Flax: --help answers at once.
    return getattr(import_module("tinygpt_jax.generation.text"), name)
