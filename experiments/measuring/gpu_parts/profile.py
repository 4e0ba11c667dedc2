"""Memory of an update, and the time of each of its kernels."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.measuring.gpu_parts import trace
from experiments.measuring.gpu_parts.task import Piece, Task
from experiments.measuring.peers.turns import Batch, random_batch, train
from experiments.measuring.tables import Cell
from tinygpt_jax.cards import cards_of_kind
from tinygpt_jax.config import Config
from tinygpt_jax.estimate.compiling import pallas_kernels

_UPDATES = 10  # in a trace
_LONGEST = 40  # kernels in the table


def profile(task: Task) -> Iterator[Piece]:
    """For each batch size, the smallest first, since the device tells only the most that it ever held."""
    # Kernels that are launched together, as a CUDA graph, do not tell of which instruction they are.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="
    import jax

    found = {}
    for batch_size in task.batch_sizes:
        title, trainer, batches = f"{batch_size} rows an update", *_trainer(task.config(batch_size))
        traced, program = trainer.compile(*batches[0])
        train(trainer, batches)
        yield f"memory, {title}", {"XLA's account": _memory(program)}

        kernels = _trace(task.out / "trace" / str(batch_size), trainer, batches)
        text = program.as_text() or ""
        names = trace.op_names(text)
        measured = trace.by_part(kernels, names, _UPDATES)
        found[title] = measured, text, dict(pallas_kernels(traced.jaxpr.jaxpr))
        yield f"kernels by part, {title}", measured
        yield f"the longest kernels, {title}", trace.longest(kernels, names, _UPDATES, _LONGEST)
        del trainer
    # Last, since a program that cannot be read shall cost no figure.
    for card in list(cards_of_kind(jax.devices()[0].device_kind).values())[:1]:
        for title, (measured, text, by_hand) in found.items():
            yield f"beside the estimate, {title}", trace.beside_the_estimate(measured, text, by_hand, card)


def _trainer(config: Config) -> tuple[Any, list[Batch]]:
    """Ours, and what it learns from."""
    from experiments.measuring.peers.ours import Trainer

    return Trainer(config), [random_batch(config, seed) for seed in range(_UPDATES)]


def _memory(program: Any) -> dict[str, Cell]:
    """In GiB: by XLA's account, and the most that the device ever held, where it tells."""
    import jax

    from experiments.measuring.peers.ours import bytes_of

    kept, temporary = bytes_of(program)
    sizes = {"state, GiB": kept, "temporary, GiB": temporary, "at most, GiB": kept + temporary}
    if statistics := jax.local_devices()[0].memory_stats():
        sizes["the device tells, GiB"] = statistics["peak_bytes_in_use"]
    return {what: size / 2**30 for what, size in sizes.items()}


def _trace(folder: Path, trainer: Any, batches: list[Batch]) -> list[trace.Kernel]:
    """The kernels of an update with each batch."""
    import jax

    shutil.rmtree(folder, ignore_errors=True)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow down what gives the device its work
    with jax.profiler.trace(str(folder), profiler_options=options):
        train(trainer, batches)
    return trace.read_trace(folder)
