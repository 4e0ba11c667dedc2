"""One update: the state, and the jitted training step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int

from tinygpt_jax.config import TrainingConfig
from tinygpt_jax.data.batches import Batch
from tinygpt_jax.errors import UsageError, UserError, first_line
from tinygpt_jax.model import GPT
from tinygpt_jax.random_keys import random_key
from tinygpt_jax.training.sharding import by_rows, in_parts, replicated

# Logits of one update, with their gradient, may take this much memory of a device before they are cut in pieces. On a
# CPU pieces of this size are at least as fast as the whole (docs/speed.md).
_MOST_LOSS_BYTES = {"cpu": 2**29, "gpu": 2**32}


class TrainState(NamedTuple):
    """Everything an update changes."""

    step: Int[Array, ""]  # updates done
    params: Any
    opt_state: optax.OptState


class StepMetrics(NamedTuple):
    """What an update reports, left on the device until somebody reads it."""

    loss: Float[Array, ""]
    gradient_norm: Float[Array, ""]  # before clipping
    applied: Bool[Array, ""]


def initial_state(
    model: GPT, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh, params: Any = None
) -> TrainState:
    """The state before the first update, each device with its part of it.

    Fresh parameters are a function of the seed, and nobody ever holds them all. Given ones are the host's arrays.
    """
    sharding = _sharding(model, optimizer, mesh)
    if params is None:
        return jax.jit(lambda: _fresh(model, optimizer, seed), out_shardings=sharding)()
    return jax.jit(lambda p: TrainState(jnp.int32(0), p, optimizer.init(p)), out_shardings=sharding)(params)


def _fresh(model: GPT, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    params = model.init(random_key("parameters", seed), jnp.zeros((1, 1), jnp.int32))["params"]
    return TrainState(jnp.int32(0), params, optimizer.init(params))


def _sharding(model: GPT, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """Where the state lies, as `jax.jit` takes it."""
    if mesh.shape["fsdp"] == 1:
        return replicated(mesh)
    return in_parts(jax.eval_shape(lambda: _fresh(model, optimizer, 0)), mesh)


def make_train_step(
    model: GPT, optimizer: optax.GradientTransformation, config: TrainingConfig, mesh: Mesh
) -> Callable[[TrainState, Batch, int], tuple[TrainState, StepMetrics]]:
    """The jitted function (state, batch, step) -> (state, metrics). It consumes the state it is given.

    An update with a non-finite loss or gradient leaves the state as it was, and so does every later one: the host,
    which reads metrics late, finds the last good state. The caller counts its calls in `step`, and the state counts the
    updates that were applied. Once one was left out, the state's count stays behind: `state.step == step` is false from
    then on, and nothing is applied any more.

    Raises:
        UsageError: the batch does not divide over devices and micro-batches.
    """
    pieces = config.gradient_accumulation
    share, rest = divmod(config.batch_size, pieces * mesh.size)
    if rest:
        raise UsageError(
            f"batch_size {config.batch_size}: must be a multiple of "
            f"gradient_accumulation {pieces} x {mesh.size} devices"
        )
    platform = mesh.devices.flat[0].platform
    arrangement: dict[str, Any] = {}
    if "chunks" in signature(model.arithmetic.head_cross_entropy).parameters:  # the formulas know of no pieces
        arrangement["chunks"] = loss_chunks(model, share, platform)
        arrangement["vocab_multiple"] = 1 if platform == "cpu" else 128  # tensor cores want whole tiles

    def loss_and_gradients(params, batch: Batch, key):
        def loss(params):
            return model.apply({"params": params}, *batch, key, **arrangement, method="loss")

        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # so that kernels know the devices
            return jax.value_and_grad(loss)(params)

    def accumulated(params, batch: Batch, key):
        """The same for a batch cut in pieces, each weighted by its share of the targets."""
        total = jnp.maximum(jnp.sum(batch.mask), 1)

        def add(carry, piece):
            index, part = piece
            weight = jnp.sum(part.mask) / total
            result = loss_and_gradients(params, part, jax.random.fold_in(key, index))
            return jax.tree.map(lambda a, b: a + weight * b, carry, result), None

        zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, params))
        # Each piece takes every k-th row, so that it has rows on all devices.
        parts = jax.tree.map(lambda x: x.reshape(-1, pieces, x.shape[-1]).swapaxes(0, 1), batch)
        return jax.lax.scan(add, zeros, (jnp.arange(pieces), parts))[0]

    def train_step(state: TrainState, batch: Batch, step: Int[Array, ""]) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(random_key("dropout", config.seed), step)
        compute = loss_and_gradients if pieces == 1 else accumulated
        loss, gradients = compute(state.params, batch, key)
        norm = optax.tree.norm(gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        updated = TrainState(state.step + 1, optax.apply_updates(state.params, updates), opt_state)
        applied = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.step == step)
        state = jax.tree.map(lambda new, old: jnp.where(applied, new, old), updated, state)
        return state, StepMetrics(loss, norm, applied)

    parts, whole = _sharding(model, optimizer, mesh), replicated(mesh)
    return jax.jit(
        train_step,
        in_shardings=(parts, by_rows(mesh), whole),
        out_shardings=(parts, whole),
        donate_argnums=0,
        compiler_options=_compiler_options(platform, model.remat),
    )


def _compiler_options(platform: str, remat: bool) -> dict[str, str | bool]:
    if platform == "gpu":
        # Products by cuBLAS, which adds the bias as it goes: in a loop of its own that reads and writes all again. And
        # none has to be tried in Triton first, which takes half of the time to compile.
        return known_options({"xla_gpu_enable_cublaslt": True, "xla_gpu_enable_triton_gemm": False})
    if platform != "cpu":
        return {}
    # Sums, as in LayerNorm and softmax, are faster in the library YNNPACK, and products as fast without it.
    options = known_options({"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"})
    # XLA for CPUs drops the barriers that rematerialisation rests on, and then computes nothing twice.
    return options | ({"xla_disable_hlo_passes": "cse_barrier_expander"} if remat else {})


def known_options(options: dict[str, str | bool]) -> dict[str, str | bool]:
    """`options` if this jaxlib knows them all, else none: an experimental one may be renamed, and only costs speed."""
    try:
        jax.jit(jnp.negative, compiler_options=options).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def loss_chunks(model: GPT, rows: int, platform: str) -> int:
    """In how many pieces the loss of `rows` rows on one device is computed: as few as the memory rule allows.

    The rule: logits and their gradient together stay below 0.5 GiB on a CPU and 4 GiB on an accelerator.
    """
    length = model.config.context_length
    needed = 2 * rows * length * model.config.vocab_size * jnp.dtype(model.compute_dtype).itemsize
    limit = _MOST_LOSS_BYTES.get(platform, _MOST_LOSS_BYTES["gpu"])
    return next(n for n in range(1, length + 1) if length % n == 0 and (needed / n <= limit or n == length))


@contextmanager
def memory_errors(config: TrainingConfig) -> Iterator[None]:
    """Turn running out of the device's memory into one line that says which setting to change.

    Raises:
        UserError: it did; nothing was saved since the last checkpoint.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        # XLA has several ways to say it: RESOURCE_EXHAUSTED, or INTERNAL with "Out of memory allocating".
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise
        rows = config.batch_size
        pieces = next((n for n in range(2, rows + 1) if rows % n == 0 and n > config.gradient_accumulation), None)
        advice = [
            *(["--remat (about a third more work; a run can go on with it)"] if not config.remat else []),
            *([f"--gradient-accumulation {pieces} (the same batch in smaller pieces)"] if pieces else []),
            f"a --batch-size below {rows}" if rows > 1 else "a smaller model",
        ]
        reason = first_line(error).removeprefix("RESOURCE_EXHAUSTED: ").removeprefix("INTERNAL: ")
        raise UserError(f"the device's memory is full ({reason}): try {', then '.join(advice)}") from None
