"""The kernels for GPUs, interpreted on the CPU, against the plain functions: names, values and gradients."""

import inspect
import os
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

sys.path.insert(0, os.path.dirname(os.path.dirname(__file__)))  # when it runs alone
from tests.test_fused import value_and_gradients
from tinygpt_jax import functional as F
from tinygpt_jax import fused, kernels
from tinygpt_jax.arithmetic import resolve_arithmetic
from tinygpt_jax.errors import UsageError
from tinygpt_jax.kernels import loss, normalisation

TARGETS = jnp.asarray(np.random.default_rng(2).integers(0, 3000, (2, 6)))
WIDTH = 32  # two heads of 16
# Name of a kernel's function: the arguments of some calls, as shapes of numbers to draw, or as values.
CALLS = {
    # Lengths that one block holds, whole and in part, and that need several.
    "self_attention": [[(2, length, 3 * WIDTH), 2] for length in (1, 31, 128, 150, 192)],
    # Widths that are a power of two and that are not; rows that a program takes at once and that it does not.
    "layer_norm": [[(2, rows, width), (width,), (width,)] for rows, width in ((64, 24), (320, 16), (192, 768))],
    # A vocabulary of one block and of more than two.
    "head_cross_entropy": [
        *([(2, 6, 5), (3000, 5), TARGETS, mask] for mask in (None, TARGETS % 4 > 0)),
        [(2, 6, 5), (2 * loss._BLOCK + 50, 5), TARGETS, None],
    ],
}


def test_the_names_and_signatures_are_those_of_the_plain_functions():
    """The model takes this module in place of the others; and every kernel's function is compared below."""
    public = {name for name, value in vars(fused).items() if name in vars(F) and callable(value)}
    assert public <= set(vars(kernels))
    assert {name for name in public if getattr(kernels, name) is not getattr(fused, name)} == set(CALLS)
    for name in CALLS:
        plain, arranged = (inspect.signature(getattr(module, name)).parameters for module in (F, kernels))
        assert list(arranged)[: len(plain)] == list(plain), name
        assert all(arranged[parameter].default == plain[parameter].default for parameter in plain), name


@pytest.mark.parametrize(("name", "call"), [(name, call) for name, calls in CALLS.items() for call in calls])
def test_values_and_gradients_are_those_of_the_plain_functions(name, call, draw):
    arguments = [jnp.asarray(draw(*x) / x[0] ** 0.5, jnp.float32) if isinstance(x, tuple) else x for x in call]
    drawn = [i for i, x in enumerate(call) if isinstance(x, tuple)]
    functions = (getattr(F, name), partial(getattr(kernels, name), interpret=True))
    plain, arranged = (jax.jit(partial(value_and_gradients, f, arguments, drawn))() for f in functions)
    for a, b in zip(jax.tree.leaves(arranged), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5 * max(1, jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("name", CALLS)
def test_in_bfloat16_they_err_no_more_than_the_plain_functions(name, draw):
    """Of values and gradients in float32, from the same rounded arguments."""
    call = CALLS[name][1]
    arguments = [jnp.asarray(draw(*x) / x[0] ** 0.5, jnp.float32) if isinstance(x, tuple) else x for x in call]
    arguments[0] = arguments[0].astype(jnp.bfloat16)
    drawn = [i for i, x in enumerate(call) if isinstance(x, tuple)]
    exact = value_and_gradients(getattr(F, name), [arguments[0].astype(jnp.float32), *arguments[1:]], drawn)
    plain = value_and_gradients(getattr(F, name), arguments, drawn)
    ours = value_and_gradients(partial(getattr(kernels, name), interpret=True), arguments, drawn)
    for a, b, wanted in zip(*map(jax.tree.leaves, (ours, plain, exact)), strict=True):
        errors = [float(jnp.linalg.norm((x.astype(jnp.float32) - wanted).ravel())) for x in (a, b)]
        assert errors[0] <= 1.2 * errors[1] + 1e-6 * float(jnp.linalg.norm(wanted.ravel())), (name, errors)


def test_the_loss_of_large_logits_is_exact():
    """Losses of a few nats between logits near 10,000."""
    logits = jnp.float32(1e4) + jnp.linspace(0, 3, 3000).round(1)[None, None, :] * jnp.ones((2, 6, 1))
    weights = jnp.ones((2, 6))
    losses, gradient = loss._losses_and_gradient(logits, TARGETS, weights, 3000, interpret=True)
    wanted = F.token_losses(logits - 1e4, TARGETS)
    np.testing.assert_allclose(losses, wanted, rtol=1e-6)
    np.testing.assert_allclose(gradient.sum(axis=-1), 0, atol=1e-5)


def test_shapes_that_no_kernel_takes_are_computed_all_the_same(draw):
    """A head of 12 features is no power of two; 7 rows of LayerNorm do not divide over programs."""
    qkv, x, ones = jnp.asarray(draw(1, 7, 72), jnp.float32), jnp.asarray(draw(1, 7, 24), jnp.float32), jnp.ones(24)
    np.testing.assert_allclose(kernels.self_attention(qkv, 2), F.self_attention(qkv, 2), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(kernels.layer_norm(x, ones, ones), F.layer_norm(x, ones, ones), rtol=1e-5, atol=1e-5)


def test_a_device_may_hold_fewer_rows_than_a_program_takes(draw):
    """As 128 rows over 16 devices: a program then takes what there is."""
    x, ones = jnp.asarray(draw(8, 24), jnp.float32), jnp.ones(24)
    y, pull_back = jax.vjp(lambda x: normalisation._layer_norm(x, ones, ones, 1e-5, True), x)
    wanted, plain = jax.vjp(lambda x: F.layer_norm(x, ones, ones), x)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(*(f(jnp.sin(x))[0] for f in (pull_back, plain)), rtol=1e-5, atol=1e-5)


def test_kernels_are_refused_where_they_cannot_run():
    with pytest.raises(UsageError, match="Ampere"):
        resolve_arithmetic("kernels")
    assert (resolve_arithmetic("plain"), resolve_arithmetic()) == (F, fused)


def test_four_devices_equal_one():
    """Each runs the kernels on its own rows, and nothing is gathered."""
    flags = "--xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    run = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]


def loss_of_all_kernels(x, scale, qkv_weight, head, targets):
    x = kernels.layer_norm(x, scale, scale, interpret=True)
    x = kernels.self_attention(x @ qkv_weight, 2, interpret=True)
    return kernels.head_cross_entropy(x, head, targets, interpret=True)


if __name__ == "__main__":
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    assert mesh.size == 4
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    generator = np.random.default_rng(0)
    numbers = [jnp.asarray(generator.normal(size=shape), jnp.float32) for shape in [(8, 64, WIDTH), (WIDTH,)]]
    weight = jnp.asarray(generator.normal(size=(WIDTH, 3 * WIDTH)) / 6, jnp.float32)
    table = jnp.asarray(generator.normal(size=(300, WIDTH)), jnp.float32)
    arguments = (*numbers, weight, table, jnp.asarray(generator.integers(0, 300, (8, 64))))
    step = jax.value_and_grad(loss_of_all_kernels, argnums=(0, 1, 2, 3))

    def on_four(*arguments):
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(*arguments)

    alone = jax.jit(step)(*arguments)
    compiled = jax.jit(on_four, in_shardings=(rows, whole, whole, whole, rows)).lower(*arguments).compile()
    assert "all-gather" not in compiled.as_text() and "all-reduce" in compiled.as_text()
    placed = jax.device_put(arguments, (rows, whole, whole, whole, rows))
    for together, wanted in zip(*map(jax.tree.leaves, (compiled(*placed), alone)), strict=True):
        np.testing.assert_allclose(together, wanted, rtol=1e-4, atol=1e-6)
