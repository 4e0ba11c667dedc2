"""Settings of every test: the CPU, no silent broadcasting, and the shapes in annotations checked as code runs."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jaxtyping
import numpy as np
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jaxtyping.install_import_hook(
    [f"tinygpt_jax.{room}" for room in ("functional", "fused", "model", "activations", "generation", "evaluation")],
    "beartype.beartype",
)


@pytest.fixture
def draw():
    """A function of a shape: normal numbers that float32 holds exactly, the same in every run, as float64."""
    generator = np.random.default_rng(0)
    return lambda *shape: generator.normal(size=shape).astype(np.float32).astype(np.float64)
