"""Compile a run's update, or its decoding, for GPUs that are not here, in a process of its own.

XLA ends the process, without an exception, where something about a card makes no sense to it. The process that
compiles gets a `Request` as JSON on its standard input and writes what it found to a file.
"""

import dataclasses
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinygpt_jax.cards import CARDS_OF_A_MACHINE, card
from tinygpt_jax.config import Config, Sampling
from tinygpt_jax.devices import USE_THE_GPU
from tinygpt_jax.errors import UsageError, UserError, first_line
from tinygpt_jax.estimate.target import target_description
from tinygpt_jax.mesh import mesh_axes

PLUGINS = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")


class NoCompilerError(UserError):
    """JAX's part for NVIDIA GPUs, which holds the compiler, is not installed."""


@dataclass(frozen=True)
class Request:
    """What to compile, for what."""

    card: str  # a name of `cards.CARDS`
    config: str  # `Config.to_json`
    devices: int = 1  # that share the batch, in machines of `CARDS_OF_A_MACHINE`; decoding uses one
    rows: int | None = None  # compile the decoding of so many texts, in place of the update
    mesh: str | None = None  # how they share it, as `training.sharding.make_mesh` takes it


@dataclass(frozen=True)
class Compiled:
    """The program of one device, and what it needs."""

    text: str  # as `program.read_program` reads it
    arguments_bytes: int  # of an update, the state and its batch
    most_bytes: int  # with the working memory
    written_by_hand: dict[str, float]  # FLOP of a launch of each Pallas kernel
    seconds: float  # that compiling took


def compile_for(request: Request, timeout: float = 1800) -> Compiled:
    """Compile in a process of its own.

    Raises:
        NoCompilerError: JAX's plugin for CUDA is not installed, or not whole.
        UsageError: the request can never work.
        UserError: the compiler failed.
    """
    if not compiler_is_installed():
        raise NoCompilerError(f"compiling for an NVIDIA GPU needs JAX's part for it: {USE_THE_GPU}")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}  # no GPU that may be here is touched
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        command = [sys.executable, "-m", __name__, str(found)]
        text = json.dumps(dataclasses.asdict(request))
        try:
            done = subprocess.run(
                command, input=text, env=environment, capture_output=True, text=True, timeout=timeout, check=False
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"compiling for {request.card} took more than {timeout:.0f} s and was stopped") from None
        document: dict[str, Any] = {"error": _last_words(done)} if not found.exists() else json.loads(found.read_text())
    if problem := document.get("error"):
        if "libdevice" in problem or "ptxas" in problem:
            raise NoCompilerError(f"compiling for an NVIDIA GPU needs CUDA's compiler, nvcc: {USE_THE_GPU}")
        raise (UsageError if document.get("usage") else UserError)(problem)
    return Compiled(**document)


def compiler_is_installed() -> bool:
    """Whether JAX's part for NVIDIA GPUs is here."""
    return importlib.util.find_spec("jax_plugins") is not None and any(map(importlib.util.find_spec, PLUGINS))


def _last_words(done: subprocess.CompletedProcess) -> str:
    said = done.stderr.strip().splitlines() or ["it said nothing"]
    how = f"by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else f"with code {done.returncode}"
    return f"the compiler ended {how}: {said[-1][:300]}"


def main() -> None:
    """Compile what standard input asks for; write it, or what was wrong, to the file that is named."""
    request = Request(**json.load(sys.stdin))
    try:
        document = dataclasses.asdict(_compile(request))
    except UserError as error:
        document = {"error": str(error), "usage": isinstance(error, UsageError)}
    except Exception as error:  # whatever the compiler raises: the other process tells the user
        document = {"error": f"cannot compile for {request.card}: {type(error).__name__}: {first_line(error)}"}
    Path(sys.argv[1]).write_text(json.dumps(document))


def _compile(request: Request) -> Compiled:
    config, began = Config.from_json(request.config), time.monotonic()
    mesh = _mesh(request)
    traced = _update(config, mesh) if request.rows is None else _decoding(config, mesh, request.rows)
    compiled = traced.lower().compile()
    memory = compiled.memory_analysis()
    arguments = memory.argument_size_in_bytes
    most = arguments + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    by_hand = dict(pallas_kernels(traced.jaxpr.jaxpr))
    return Compiled(compiled.as_text(), arguments, most, by_hand, time.monotonic() - began)


def _mesh(request: Request) -> Any:
    from jax.experimental.topologies import get_topology_desc

    from tinygpt_jax.training.sharding import make_mesh

    description, cards = target_description(card(request.card)), min(request.devices, CARDS_OF_A_MACHINE)
    machines = f"1x{request.devices // cards}x{cards}"
    topology = get_topology_desc("", "cuda", target_config=description, topology=machines)
    return make_mesh(request.mesh, topology.devices)


def _update(config: Config, mesh: Any) -> Any:
    """The training step, traced for the mesh."""
    import jax
    import jax.numpy as jnp

    from tinygpt_jax.data.batches import Batch
    from tinygpt_jax.training.parts import make_model
    from tinygpt_jax.training.step import make_train_step

    optimizer, state = _optimizer_and_state(config)
    shape = (config.training.batch_size, config.model.context_length)
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    batch = Batch(tokens, tokens, jax.ShapeDtypeStruct(shape, jnp.bool_))
    step = make_train_step(make_model(config, mesh), optimizer, config.training, mesh)
    return step.trace(state, batch, state.step)  # pyright: ignore[reportFunctionMemberAccess]


def state_bytes(config: Config, devices: int = 1, mesh: str | None = None) -> int:
    """What training holds between updates, on each device of a mesh."""
    import jax
    from jax.sharding import AbstractMesh

    from tinygpt_jax.training.sharding import in_parts

    axes, state = mesh_axes(mesh, devices), _optimizer_and_state(config)[1]
    parts = in_parts(state, AbstractMesh(tuple(axes.values()), tuple(axes)))  # pyright: ignore[reportArgumentType]
    held = jax.tree.map(lambda x, part: math.prod(part.shard_shape(x.shape)) * x.dtype.itemsize, state, parts)
    return sum(jax.tree.leaves(held))


def _optimizer_and_state(config: Config) -> tuple[Any, Any]:
    """The state without its values."""
    import jax
    import jax.numpy as jnp

    from tinygpt_jax.model import abstract_params
    from tinygpt_jax.training.optimizer import make_optimizer
    from tinygpt_jax.training.step import TrainState

    optimizer = make_optimizer(config.optimizer, config.training.steps or 1000)
    params, count = abstract_params(config.model), jax.ShapeDtypeStruct((), jnp.int32)
    opt_state = jax.eval_shape(optimizer.init, params)
    return optimizer, TrainState(count, params, opt_state)  # pyright: ignore[reportArgumentType]


def _decoding(config: Config, mesh: Any, rows: int) -> Any:
    """What the loop that writes `rows` texts does for a token, traced for the mesh's first device."""
    import jax
    import numpy as np
    from jax.sharding import SingleDeviceSharding

    from tinygpt_jax.generation import decoding
    from tinygpt_jax.generation.sampling import as_scalars
    from tinygpt_jax.model import abstract_params
    from tinygpt_jax.training.parts import make_model

    model, device = make_model(config, mesh), mesh.devices.flat[0]
    rows = max(rows, decoding.least_rows(device.platform))

    def arguments(params):
        nonlocal model
        model, params = decoding.prepare(model, params)
        settings, keys = as_scalars(Sampling()), jax.random.split(jax.random.key(0), rows)
        state = decoding._read_windows(model, params, [[0]] * rows, np.zeros(rows, bool), keys, settings, 0, 0)
        return params, state, state.token[:, None], 0, keys, settings, 0

    here = SingleDeviceSharding(device)
    shapes = jax.eval_shape(arguments, abstract_params(config.model))
    placed = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    return jax.jit(decoding._next, static_argnums=0, donate_argnums=2).trace(model, *placed)


def pallas_kernels(jaxpr: Any) -> Iterator[tuple[str, float]]:
    """Name and FLOP of a launch of each kernel that a traced program calls, as the kernel tells them."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            cost = equation.params["cost_estimate"]
            name = equation.params["name"] or equation.params["name_and_src_info"].name
            yield name, float(cost.flops) if cost else 0.0
        else:
            for inner in _inner(equation):
                yield from pallas_kernels(inner)


def _inner(equation: Any) -> list[Any]:
    """The traced functions that an equation holds."""
    values = [x for value in equation.params.values() for x in (value if isinstance(value, tuple | list) else [value])]
    jaxprs = [getattr(value, "jaxpr", value) for value in values]
    return [jaxpr for jaxpr in jaxprs if hasattr(jaxpr, "eqns")]


if __name__ == "__main__":
    main()
