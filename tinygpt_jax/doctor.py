"""Is everything in order on this machine? Each finding that is a problem comes with its remedy."""

import importlib.metadata
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tinygpt_jax.devices import (
    USE_THE_GPU,
    Device,
    cache_folder,
    describe_devices,
    gpu_is_unused,
    main_memory,
    use_device,
)

PACKAGES = (
    "jax jaxlib flax optax orbax-checkpoint grain tiktoken numpy datasets pyarrow matplotlib wordcloud tyro safetensors"
).split()
_ENOUGH_DISK = 2 * 2**30  # bytes; a quickstart needs a tenth, prepared TinyStories one of the two
_ENOUGH_MEMORY = 2 * 2**30  # bytes


@dataclass(frozen=True)
class Finding:
    """Something that was looked at."""

    name: str
    value: str
    problem: str = ""  # what is wrong, if anything is
    remedy: str = ""  # what to do about it


def examine(device: Device = "auto") -> Iterator[Finding]:
    """Look at versions, device, memory and folders, and try out training and checkpoints: a few seconds."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "device": lambda: _device(device),
        "memory": _memory,
        "folders": _folders,
        "self-test": _self_test,
    }
    for name, check in checks.items():
        try:
            yield from check()
        except Exception as error:  # whatever it is, it is what the doctor was called for
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
            yield Finding(name, "failed", reason, "mend what it says; else reinstall: pip install -e .")


def _versions() -> Iterator[Finding]:
    yield Finding("python", platform.python_version())
    yield Finding("system", platform.platform())
    for package in ("tinygpt_jax", *PACKAGES):
        try:
            yield Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "not installed", "it is needed", "pip install -e .")


def _device(choice: Device) -> Iterator[Finding]:
    use_device(choice)
    if choice != "cpu" and gpu_is_unused():
        yield Finding("device", describe_devices(), "an NVIDIA GPU is here but JAX does not use it", USE_THE_GPU)
    else:
        yield Finding("device", describe_devices())


def _memory() -> Iterator[Finding]:
    import jax

    statistics = jax.devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        yield Finding("device memory", f"{_gib(statistics['bytes_limit'])} for JAX")
    available, total = main_memory()
    value = f"{_gib(available)} of {_gib(total)} available"
    if available < _ENOUGH_MEMORY:
        remedy = "end other programs, or train a smaller model (--batch-size, --d-model)"
        yield Finding("memory", value, f"less than {_gib(_ENOUGH_MEMORY)}", remedy)
    else:
        yield Finding("memory", value)


def _folders() -> Iterator[Finding]:
    cache = cache_folder()
    yield _folder("prepared stories", cache, "set TINYGPT_CACHE to another folder, or give --cache-dir")
    yield _folder("compiled programs", cache / "compiled", "set TINYGPT_CACHE to another folder")
    yield _folder("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to another folder")


def _folder(name: str, folder: Path, remedy: str) -> Finding:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            free = shutil.disk_usage(folder).free
    except OSError as error:
        return Finding(name, str(folder), f"cannot be written to: {error.strerror}", remedy)
    value = f"{folder}, {_gib(free)} free"
    if free < _ENOUGH_DISK:
        return Finding(name, value, f"less than {_gib(_ENOUGH_DISK)} free", f"free some space, or {remedy}")
    return Finding(name, value)


def _self_test() -> Iterator[Finding]:
    """Learn one batch by heart, save, restore, and compare every number."""
    import jax
    import numpy as np

    from tinygpt_jax.config import Config, ModelConfig, OptimizerConfig, TrainingConfig
    from tinygpt_jax.data.batches import Batch
    from tinygpt_jax.model import GPT
    from tinygpt_jax.runs.checkpoint_files import Progress
    from tinygpt_jax.tokenizer import compact
    from tinygpt_jax.training import checkpoint
    from tinygpt_jax.training.optimizer import make_optimizer
    from tinygpt_jax.training.step import data_mesh, initial_state, make_train_step, put_batch, replicated

    vocabulary, mesh, steps = compact(np.zeros(50_257, np.int64)), data_mesh(), 20
    model = ModelConfig(vocabulary.vocab_size, 16, n_layers=1, n_heads=2, d_model=32, d_ff=64, dropout=0.0)
    training = TrainingConfig(batch_size=8 * mesh.size, compute_dtype="float32")
    config = Config(model, optimizer=OptimizerConfig(learning_rate=1e-2), training=training)
    optimizer = make_optimizer(config.optimizer, steps)
    state = initial_state(GPT(model), optimizer, 0, mesh)
    update = make_train_step(GPT(model), optimizer, training, mesh)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (training.batch_size, 17)).astype(np.int32)
    batch = put_batch(Batch(tokens[:, :-1], tokens[:, 1:], np.ones((training.batch_size, 16), bool)), mesh)

    start, losses = time.monotonic(), []
    for step in range(steps):
        state, metrics = update(state, batch, step)
        losses.append(float(metrics.loss))
    value = f"{steps} updates in {time.monotonic() - start:.1f} s, loss {losses[0]:.2f} to {losses[-1]:.2f}"
    if losses[-1] < 0.9 * losses[0]:
        yield Finding("training", value)
    else:
        yield Finding("training", value, "the loss did not fall", "reinstall jax, or try --device cpu")

    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoint.save(Path(folder), state, Progress(steps, None), config, vocabulary)
        size = sum(path.stat().st_size for path in saved.folder.rglob("*") if path.is_file())
        problem = saved.problem() or ""
        restored = checkpoint.restore_state(saved, optimizer, replicated(mesh))
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
    if not problem and not all(np.array_equal(a, b) for a, b in pairs):
        problem = "what was restored is not what was saved"
    remedy = "check the disk, or reinstall orbax-checkpoint" if problem else ""
    yield Finding("checkpoint", f"{size / 1000:.0f} kB saved and restored", problem, remedy)


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
