"""A trained model as one web page, in which it writes and can be looked into; `page/` is what the browser runs."""

from tinygpt_jax.explorer.building import MOST_BYTES as MOST_BYTES
from tinygpt_jax.explorer.building import fits as fits
from tinygpt_jax.explorer.building import write_explorer as write_explorer
