"""A model with functions of one's own in it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.test_activations import SHAPE, TOKENS, large_parameters
from tinygpt_jax import functional as F
from tinygpt_jax import fused
from tinygpt_jax.arithmetic import functional_with
from tinygpt_jax.config import ModelConfig, OptimizerConfig, Sampling, TrainingConfig
from tinygpt_jax.data.batches import Batch
from tinygpt_jax.errors import UsageError
from tinygpt_jax.generation.decoding import decode
from tinygpt_jax.model import GPT
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.sharding import make_mesh, put_batch
from tinygpt_jax.training.step import initial_state, make_train_step


def test_own_functions_are_used_in_training_and_in_decoding():
    """Attention to the position before alone, and an activation; with a cache and without."""

    def before(query, key, value, mask=None, causal=False):
        if causal:
            mask = F.causal_mask(query.shape[-2], key.shape[-2])
        places_back = jnp.cumsum(mask[..., ::-1], axis=-1)[..., ::-1]
        return F.attention(query, key, value, mask & (places_back <= 2))

    config = ModelConfig(**SHAPE)
    model = GPT(config, arithmetic=functional_with(attention=before, relu=lambda x: F.relu(x) ** 2))
    params = large_parameters(config)
    logits = forward(model)(params, TOKENS)
    changed = TOKENS.at[:, 0].set((TOKENS[:, 0] + 1) % 40)
    moved = np.abs(forward(model)(params, changed) - logits).max(axis=(0, 2))
    assert (moved[:3] > 1e-3).all() and (moved[3:] < 1e-5).all()  # two layers see two tokens back
    only_activation = GPT(config, arithmetic=functional_with(relu=lambda x: F.relu(x) ** 2))
    plain, squared = (forward(m)(params, TOKENS[:, :1]) for m in (GPT(config), only_activation))
    assert np.abs(plain - squared).max() > 0.1
    np.testing.assert_allclose(logits[:, :1], squared, rtol=1e-4, atol=1e-4)  # the first token sees only itself
    greedy = []
    for piece in decode(model, params, [[5, 7, 9]], jax.random.split(jax.random.key(0), 1), Sampling(0), 99, 6, 6):
        greedy += piece[0].tolist()
    text = [5, 7, 9, *greedy]
    guesses = forward(model)(params, jnp.array([[*text, 0, 0, 0]]))[0].argmax(axis=-1)
    assert guesses[2:8].tolist() == greedy


def forward(model):
    return jax.jit(lambda params, tokens: model.apply({"params": params}, tokens))


def test_the_step_of_training_takes_own_functions():
    """It hands pieces of the loss to those who know of them alone."""
    config, mesh = TrainingConfig(batch_size=2), make_mesh(devices=jax.devices()[:1])
    batch = Batch(TOKENS, TOKENS, TOKENS > 5)
    losses = []
    for arithmetic in (F, fused, functional_with(gelu=F.relu), functional_with(relu=F.gelu)):
        model, optimizer = GPT(ModelConfig(**SHAPE), arithmetic=arithmetic), make_optimizer(OptimizerConfig(), 1)
        update = make_train_step(model, optimizer, config, mesh)
        state = initial_state(model, optimizer, 0, mesh, jax.device_get(large_parameters(model.config)))
        losses.append(float(update(state, put_batch(batch, mesh), 0)[1].loss))
    np.testing.assert_allclose(losses[:3], losses[0], rtol=1e-5)
    assert abs(losses[3] - losses[0]) > 0.01


def test_an_own_function_of_a_name_that_nobody_calls():
    with pytest.raises(UsageError, match="functional_with atention: there is no such function; there are linear, "):
        functional_with(atention=F.attention)


def test_the_formulas_stay_what_they_are():
    """The copy is a copy: one model's functions are not another's."""
    functional_with(relu=lambda x: x)
    assert F.relu(jnp.array(-1.0)) == 0
    assert F.feed_forward(*(jnp.ones(shape) for shape in [(1, 2), (2, 3), (3,), (3, 2), (2,)])).tolist() == [[10, 10]]
