"""No two purposes share random numbers."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax

from tinygpt_jax import functional
from tinygpt_jax.config import ModelConfig, TrainingConfig
from tinygpt_jax.data.batches import Batch
from tinygpt_jax.generation.text import _sample_keys
from tinygpt_jax.training.sharding import make_mesh
from tinygpt_jax.training.step import TrainState, make_train_step


def test_no_sample_is_drawn_with_an_updates_numbers():
    """Guards against two places that fold different things into the seed's own key: sample 1 at step s once had the
    key of dropout at step s, because the number of dropout's purpose is 1 too."""
    numbers, seed, mesh = range(4), 3, make_mesh()

    def number_of_the_key(_, inputs, targets, mask, key, **__):
        return jax.random.uniform(key)

    model = SimpleNamespace(
        config=ModelConfig(), compute_dtype=jnp.float32, remat=False, arithmetic=functional, apply=number_of_the_key
    )
    training = TrainingConfig(batch_size=mesh.size, seed=seed)
    update = make_train_step(model, optax.identity(), training, mesh)  # type: ignore[arg-type]
    state, drawn = TrainState(jnp.int32(0), jnp.zeros(()), optax.EmptyState()), []
    for step in numbers:
        state, metrics = update(state, Batch(*[jnp.ones((mesh.size, 1), jnp.int32)] * 3), step)
        drawn.append(float(metrics.loss))
    for key in _sample_keys(seed, numbers):
        drawn += [float(jax.random.uniform(jax.random.fold_in(key, step))) for step in numbers]
    assert len(set(drawn)) == len(drawn) == 20
