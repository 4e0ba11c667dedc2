"""Memory of an update, and the time of each of its kernels."""

import os
import shutil
from collections.abc import Iterator

from experiments.measuring.gpu_parts import trace
from experiments.measuring.gpu_parts.task import Piece, Task
from experiments.measuring.peers.turns import random_batch, train

_UPDATES = 10  # in a trace
_LONGEST = 40  # kernels in the table


def profile(task: Task) -> Iterator[Piece]:
    """For each batch size, the smallest first, since the device tells only the most that it ever held."""
    # Kernels that are launched together, as a CUDA graph, do not tell of which instruction they are.
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_enable_command_buffer="
    for batch_size in task.batch_sizes:
        yield from _profile(task, batch_size)


def _profile(task: Task, batch_size: int) -> Iterator[Piece]:
    import jax

    from experiments.measuring.peers.ours import Trainer, bytes_of

    config, title = task.config(batch_size), f"{batch_size} rows an update"
    batches = [random_batch(config, seed) for seed in range(_UPDATES)]
    trainer = Trainer(config)
    update = trainer.compile(*batches[0])
    train(trainer, batches[:3])
    kept, temporary = bytes_of(update)
    memory = {"state, GiB": kept, "temporary, GiB": temporary, "at most, GiB": kept + temporary}
    if statistics := jax.local_devices()[0].memory_stats():
        memory["the device tells, GiB"] = statistics["peak_bytes_in_use"]
    yield f"memory, {title}", {"XLA's account": {what: size / 2**30 for what, size in memory.items()}}

    folder = task.out / "trace" / str(batch_size)
    shutil.rmtree(folder, ignore_errors=True)
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # it would slow down what gives the device its work
    with jax.profiler.trace(str(folder), profiler_options=options):
        train(trainer, batches)
    kernels, names = trace.read_trace(folder), trace.op_names(update.as_text() or "")
    yield f"kernels by part, {title}", trace.by_part(kernels, names, _UPDATES)
    yield f"the longest kernels, {title}", trace.longest(kernels, names, _UPDATES, _LONGEST)
