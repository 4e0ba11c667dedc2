import dataclasses
import json
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinygpt_jax import functional, fused
from tinygpt_jax.config import ModelConfig, OptimizerConfig, TrainingConfig
from tinygpt_jax.data.batches import Batch
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.model import GPT
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.sharding import make_mesh, put_batch
from tinygpt_jax.training.step import initial_state, known_options, loss_chunks, make_train_step, memory_errors

MODEL = ModelConfig(vocab_size=50, context_length=16, n_layers=1, n_heads=2, d_model=16, d_ff=32, dropout=0.0)
TRAINING = TrainingConfig(batch_size=8)


def random_batch(seed):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 50, (8, 17)).astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], rng.random((8, 16)) < 0.7)


def losses_and_state(model_config=MODEL, training=TRAINING, steps=3, optimizer=None, arithmetic=fused):
    mesh, model = make_mesh(), GPT(model_config, arithmetic=arithmetic)
    optimizer = make_optimizer(optimizer or OptimizerConfig(learning_rate=1e-2), steps)
    state = initial_state(model, optimizer, training.seed, mesh)
    update = make_train_step(model, optimizer, training, mesh)
    losses = []
    for step in range(steps):
        state, metrics = update(state, put_batch(random_batch(step), mesh), step)
        losses.append(float(metrics.loss))
    return losses, state


def test_accumulated_gradients_equal_the_whole_batch():
    """Guards the weighting: pieces have different numbers of targets, so a plain mean of means is wrong."""
    whole, state = losses_and_state()
    pieces, other = losses_and_state(training=dataclasses.replace(TRAINING, gradient_accumulation=4))
    np.testing.assert_allclose(whole, pieces, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)


def test_the_plain_arithmetic_learns_the_same():
    dropping = dataclasses.replace(MODEL, dropout=0.3)
    losses = [losses_and_state(dropping, steps=2, arithmetic=arithmetic)[0] for arithmetic in (functional, fused)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_dropout_differs_between_steps_and_seeds_and_repeats():
    """Guards against one key for all steps, and against a key that is not of the seed."""
    dropping = dataclasses.replace(MODEL, dropout=0.5)
    still = OptimizerConfig(learning_rate=1e-30)
    mesh, model = make_mesh(), GPT(dropping, arithmetic=fused)
    optimizer = make_optimizer(still, 9)
    batch = put_batch(random_batch(0), mesh)

    def losses(seed):
        update = make_train_step(model, optimizer, dataclasses.replace(TRAINING, seed=seed), mesh)
        for _ in range(2):
            state = initial_state(model, optimizer, 0, mesh)
            state, first = update(state, batch, 0)
            _, second = update(state, batch, 1)
            yield float(first.loss), float(second.loss)

    (first, second), again = losses(0)
    assert abs(first - second) > 1e-4
    assert again == (first, second)
    assert abs(next(losses(1))[0] - first) > 1e-4


def test_a_non_finite_update_changes_nothing_and_neither_do_later_ones():
    """The host reads metrics late; by then later updates have run. None may touch the last good state."""
    mesh, model = make_mesh(), GPT(MODEL, arithmetic=fused)
    optimizer = make_optimizer(OptimizerConfig(), 5)
    state = initial_state(model, optimizer, 0, mesh)
    update = make_train_step(model, optimizer, TRAINING, mesh)
    state, metrics = update(state, put_batch(random_batch(0), mesh), 0)
    assert metrics.applied
    good = jax.device_get(state)
    broken = state._replace(params={**state.params, "token_embedding": state.params["token_embedding"] * jnp.nan})
    broken, metrics = update(broken, put_batch(random_batch(1), mesh), 1)
    assert not metrics.applied and int(broken.step) == 1
    later = jax.tree.map(jnp.asarray, good)  # the good state again, but the host is already at step 2
    later, metrics = update(later, put_batch(random_batch(2), mesh), 2)
    assert not metrics.applied
    for a, b in zip(jax.tree.leaves(good), jax.tree.leaves(later), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("savings", [{"remat": True}, {"gradient_accumulation": 4}])
def test_what_saves_memory_does(savings):
    """By XLA's account of the compiled update; and rematerialisation gives the same losses up to rounding."""
    deep = dataclasses.replace(MODEL, n_layers=4, dropout=0.1)
    memory, losses = [], []
    for training in (TRAINING, dataclasses.replace(TRAINING, **savings)):
        model, mesh = GPT(deep, remat=training.remat, arithmetic=fused), make_mesh()
        optimizer = make_optimizer(OptimizerConfig(), 3)
        state = initial_state(model, optimizer, 0, mesh)
        batch = put_batch(random_batch(0), mesh)
        update = make_train_step(model, optimizer, training, mesh).lower(state, batch, 0).compile()
        memory.append(update.memory_analysis().temp_size_in_bytes)
        losses.append([])
        for step in range(2):
            state, metrics = update(state, batch, np.int32(step))
            losses[-1].append(float(metrics.loss))
    assert memory[1] < 0.6 * memory[0]
    if "remat" in savings:
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-6)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UsageError, match="batch_size 9: must be a multiple of gradient_accumulation 1 x 2 devices"):
        mesh = type("Mesh", (), {"size": 2})()
        make_train_step(GPT(MODEL), make_optimizer(OptimizerConfig(), 1), TrainingConfig(batch_size=9), mesh)


def test_the_memory_rule_of_the_loss():
    """Two float32 arrays of 32 x 128 x 50,257 are 1.5 GiB; eight times the rows need eight times the pieces."""
    model = GPT(ModelConfig())
    assert loss_chunks(model, 8, "cpu") == 1
    assert loss_chunks(model, 32, "cpu") == 4
    assert loss_chunks(model, 256, "cpu") == 32
    assert loss_chunks(model, 256, "gpu") == 4
    assert loss_chunks(GPT(ModelConfig(), jnp.bfloat16), 256, "gpu") == 2


@pytest.mark.parametrize(
    ("settings", "advice"),
    [
        ({}, "try --remat (.*), then --gradient-accumulation 2 (.*), then a --batch-size below 6"),
        ({"remat": True}, "try --gradient-accumulation 2 (.*), then a --batch-size below 6"),
        (
            {"remat": True, "gradient_accumulation": 2},
            "try --gradient-accumulation 3 (.*), then a --batch-size below 6",
        ),
        ({"remat": True, "gradient_accumulation": 6}, "try a --batch-size below 6"),
        ({"remat": True, "batch_size": 1}, "try a smaller model"),
    ],
)
def test_a_full_memory_says_what_to_change(settings, advice):
    """With the error that XLA itself raises, and only what is left to change."""
    config = TrainingConfig(**{"batch_size": 6, **settings})
    with pytest.raises(UserError) as error, memory_errors(config):
        jnp.zeros(2**44).block_until_ready()
    expected = f"the device's memory is full \\(Out of memory allocating {2**46} bytes.\\): {advice}"
    assert re.fullmatch(expected, str(error.value)), error.value


def test_a_full_memory_has_several_names():
    """XLA calls it INTERNAL where a compiled program asks for it."""
    message = "INTERNAL: Out of memory allocating 64 bytes.\nand more"
    with pytest.raises(UserError, match=r"full \(Out of memory allocating 64 bytes.\): try"), memory_errors(TRAINING):
        raise jax.errors.JaxRuntimeError(message)


def test_options_that_this_jaxlib_does_not_know_are_left_out():
    """An experimental option that is renamed must not stop training on every CPU."""
    assert known_options({"xla_cpu_experimental_of_another_version": "1"}) == {}
    known = {"xla_disable_hlo_passes": "cse_barrier_expander"}
    assert known_options(known) == known


def test_other_failures_of_the_device_are_not_about_memory():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory_errors(TRAINING):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_four_devices_equal_one():
    """The same rows, losses and parameters whether one device or four share the batch, with dropout and pieces.

    And each of them has a share: a mesh of one device would equal itself.
    """
    results = {}
    for count in (1, 4):
        flags = f"--xla_force_host_platform_device_count={count}"
        environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
        output = subprocess.run(
            [sys.executable, __file__], env=environment, capture_output=True, text=True, check=True, timeout=300
        ).stdout
        results[count] = json.loads(output)
    assert (results[1]["rows_each"], results[4]["rows_each"]) == ([8], [2, 2, 2, 2])
    np.testing.assert_allclose(results[1]["losses"], results[4]["losses"], rtol=1e-5)
    np.testing.assert_allclose(results[1]["sum"], results[4]["sum"], rtol=1e-4)


if __name__ == "__main__":
    config = dataclasses.replace(MODEL, dropout=0.3)
    values, final = losses_and_state(config, dataclasses.replace(TRAINING, gradient_accumulation=2))
    total = sum(float(jnp.sum(jnp.abs(x))) for x in jax.tree.leaves(final.params))
    shares = put_batch(random_batch(0), make_mesh()).inputs.addressable_shards
    rows_each = [share.data.shape[0] for share in shares]
    print(json.dumps({"rows_each": rows_each, "losses": values, "sum": total}))
