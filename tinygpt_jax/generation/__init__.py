"""From prompts to stories: the text, decoding with a cache, and the choice of each token."""

from tinygpt_jax.config import Sampling as Sampling
from tinygpt_jax.generation.text import Sample as Sample
from tinygpt_jax.generation.text import encode_prompt as encode_prompt
from tinygpt_jax.generation.text import generate as generate
from tinygpt_jax.generation.text import stream as stream
