from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.tree_util import keystr

from tests import reference
from tinygpt_jax.config import ModelConfig, OptimizerConfig
from tinygpt_jax.model import abstract_params
from tinygpt_jax.training.muon import is_muons
from tinygpt_jax.training.optimizer import decay_mask, learning_rate_schedule, make_optimizer


def test_updates_are_adamw_with_clipping():
    """Two updates against Loshchilov & Hutter 2019, algorithm 2, and clipping by the global norm, in float64.

    No setting has its default: one that is not used would show.
    """
    config = OptimizerConfig(0.1, beta1=0.8, beta2=0.95, epsilon=0.02, clip_norm=0.5, weight_decay=0.3)
    rng = np.random.default_rng(0)
    params = {"weight": rng.normal(size=(3, 4)), "bias": rng.normal(size=4)}
    optimizer = make_optimizer(config, 10)
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = optimizer.init(ours)
    mean, square = jax.tree.map(np.zeros_like, params), jax.tree.map(np.zeros_like, params)
    for t in (1, 2):
        gradients = jax.tree.map(lambda x: rng.normal(size=x.shape), params)
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradients), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)

        norm = np.sqrt(sum((g**2).sum() for g in gradients.values()))
        assert norm > config.clip_norm
        for name, p in params.items():
            g = gradients[name] * config.clip_norm / norm
            mean[name] = 0.8 * mean[name] + 0.2 * g
            square[name] = 0.95 * square[name] + 0.05 * g**2
            step = mean[name] / (1 - 0.8**t) / (np.sqrt(square[name] / (1 - 0.95**t)) + 0.02)
            decay = 0.3 * p if name == "weight" else 0
            params[name] = p - 0.1 * (step + decay)
    for name in params:
        np.testing.assert_allclose(ours[name], params[name], rtol=2e-6, atol=2e-6)


def test_muon_s_updates_are_the_reference_s():
    """Two updates of a block's matrices in float64: queries, keys and values each as a matrix, and AdamW for the rest.

    No setting has its default.
    """
    config = OptimizerConfig(
        0.1, clip_norm=1e9, weight_decay=0.3, matrices="muon", muon_rate=2.0, muon_momentum=0.8, beta1=0.7
    )
    rng = np.random.default_rng(0)
    matrices = {"qkv_weight": rng.normal(size=(4, 12)), "out_weight": rng.normal(size=(6, 4))}
    others = {"token_embedding": rng.normal(size=(5, 4)), "scale": rng.normal(size=4)}
    ours = {"blocks_0": matrices, **others}
    ours = jax.tree.map(jnp.float32, ours)
    optimizer, plain = make_optimizer(config, 10), make_optimizer(replace(config, matrices="adamw"), 10)
    by_adamw = {name: ours[name] for name in others}
    state, adamw_state = optimizer.init(ours), plain.init(by_adamw)
    momentum = jax.tree.map(np.zeros_like, matrices)
    for _ in range(2):
        gradients = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape)), ours)
        updates, state = optimizer.update(gradients, state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        rest = {name: gradients[name] for name in others}
        updates, adamw_state = plain.update(rest, adamw_state, by_adamw)
        by_adamw = jax.tree.map(jnp.add, by_adamw, updates)

        for name, w in matrices.items():
            g = np.asarray(gradients["blocks_0"][name], np.float64)
            momentum[name] = 0.8 * momentum[name] + g
            parts = np.split(0.8 * momentum[name] + g, 3 if name == "qkv_weight" else 1, axis=1)
            directions = [reference.orthogonal_direction(p) * 0.2 * np.sqrt(max(p.shape)) for p in parts]
            matrices[name] = w - 0.2 * np.concatenate(directions, axis=1) - 0.1 * 0.3 * w
    for name in matrices:
        np.testing.assert_allclose(ours["blocks_0"][name], matrices[name], rtol=1e-4, atol=1e-4)
    for name in others:
        np.testing.assert_allclose(ours[name], by_adamw[name], rtol=1e-6)


def test_muon_takes_the_matrices_of_blocks_alone():
    """Not the table of tokens, nor the head or learned positions, whose rows have gradients of their own."""
    shape = ModelConfig(vocab_size=11, n_layers=1, n_heads=1, d_model=4, d_ff=8, positions="learned")
    params = abstract_params(replace(shape, tie_embeddings=False, norm="pre"))
    taken = {keystr(path, simple=True) for path, x in jax.tree.leaves_with_path(params) if is_muons(path, x)}
    assert taken == {
        "blocks_0attentionqkv_weight",
        "blocks_0attentionout_weight",
        "blocks_0feed_forwardweight_in",
        "blocks_0feed_forwardweight_out",
    }


def test_decay_is_on_matrices_only():
    """Decay on a LayerNorm scale or a bias pulls the model to nothing useful."""
    mask = decay_mask(abstract_params(ModelConfig(vocab_size=11, n_layers=1, n_heads=1, d_model=4, d_ff=8)))
    decayed = {"/".join(k.key for k in path) for path, on in jax.tree_util.tree_leaves_with_path(mask) if on}
    assert decayed == {
        "token_embedding",
        "blocks_0/attention/qkv_weight",
        "blocks_0/attention/out_weight",
        "blocks_0/feed_forward/weight_in",
        "blocks_0/feed_forward/weight_out",
    }


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 4, 12, 30])
def test_the_rate_is_optax_s_on_the_host_and_on_the_device(schedule, warmup):
    """At every step, and beyond the last: a run that was finished may be made longer. On the host no array is made."""
    config = OptimizerConfig(2.0, schedule=schedule, warmup_steps=warmup, final_fraction=0.1)
    rate = learning_rate_schedule(config, 12)
    after = optax.constant_schedule(2.0)
    if schedule == "cosine":
        after = optax.cosine_decay_schedule(2.0, max(1, 12 - warmup), alpha=0.1)
    rising = optax.linear_schedule(2.0 / max(1, warmup), 2.0, max(1, warmup - 1))
    optaxs = optax.join_schedules([rising, after], [warmup])
    with jax.transfer_guard("disallow"):
        on_the_host = [rate(step) for step in range(15)]
    assert all(isinstance(value, float) for value in on_the_host)
    assert on_the_host == pytest.approx([float(optaxs(step)) for step in range(15)], rel=1e-6)
    assert jax.jit(jax.vmap(rate))(jnp.arange(15)).tolist() == pytest.approx(on_the_host, rel=1e-6)


def test_schedules_at_their_corners():
    constant = learning_rate_schedule(OptimizerConfig(learning_rate=2.0, warmup_steps=4), 10)
    assert [constant(i) for i in (0, 1, 3, 4, 9)] == pytest.approx([0.5, 1.0, 2.0, 2.0, 2.0])
    cosine = learning_rate_schedule(
        OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_steps=2, final_fraction=0.1), 12
    )
    assert [cosine(i) for i in (0, 1, 2, 7, 12)] == pytest.approx([1.0, 2.0, 2.0, 1.1, 0.2])
    assert learning_rate_schedule(OptimizerConfig(learning_rate=2.0), 10)(0) == 2.0
