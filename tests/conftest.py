"""Settings of every test: the CPU, no silent broadcasting, and the shapes in annotations checked as code runs."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping

jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook("tinygpt_jax", "beartype.beartype")
