"""Is everything in order on this machine? Each finding that is a problem comes with its remedy."""

import importlib.metadata
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from tinygpt_jax import devices
from tinygpt_jax.devices import Device, cache_folder
from tinygpt_jax.errors import UserError, first_line

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
    """Look at versions, memory, folders and device, and try out training and checkpoints: a few seconds."""
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "versions": _versions,
        "memory": _memory,
        "folders": _folders,
        "device": lambda: _device(device),
        "self-test": _self_test,
    }
    for name, check in checks.items():
        try:
            for finding in check():
                yield finding if finding.problem else replace(finding, remedy="")
        except Exception as error:  # whatever it is, it is what the doctor was called for
            problem, remedy = f"{type(error).__name__}: {first_line(error)}", "mend what it says; else pip install -e ."
            if isinstance(error, UserError):
                problem, _, remedy = str(error).partition("; ")
            yield Finding(name, "failed", problem, remedy or "do what it says")
            if name == "device":  # without one, nothing can be tried out
                return


def _versions() -> Iterator[Finding]:
    yield Finding("python", platform.python_version())
    yield Finding("system", platform.platform())
    for package in ("tinygpt_jax", *PACKAGES):
        try:
            yield Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            yield Finding(package, "not installed", "it is needed", "pip install -e .")


def _memory() -> Iterator[Finding]:
    available, total = devices.main_memory()
    problem = f"less than {_gib(_ENOUGH_MEMORY)}" if available < _ENOUGH_MEMORY else ""
    remedy = "end other programs, or train a smaller model (--batch-size, --d-model)"
    yield Finding("memory", f"{_gib(available)} of {_gib(total)} available", problem, remedy)


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
    problem = f"less than {_gib(_ENOUGH_DISK)} free" if free < _ENOUGH_DISK else ""
    return Finding(name, f"{folder}, {_gib(free)} free", problem, f"free some space, or {remedy}")


def _device(choice: Device) -> Iterator[Finding]:
    devices.use_device(choice)
    unused = choice != "cpu" and devices.gpu_is_unused()
    problem = "an NVIDIA GPU is here but JAX does not use it" if unused else ""
    yield Finding("device", devices.describe_devices(), problem, devices.USE_THE_GPU)
    if devices.has_accelerator():
        yield Finding("device memory", f"{_gib(devices.device_memory())} for JAX")


def _self_test() -> Iterator[Finding]:
    """Learn one batch by heart, save, restore, and compare every number."""
    import jax
    import numpy as np

    from tinygpt_jax.config import Config, ModelConfig, OptimizerConfig, TrainingConfig
    from tinygpt_jax.data.batches import Batch
    from tinygpt_jax.model import GPT
    from tinygpt_jax.runs.checkpoint_files import Progress
    from tinygpt_jax.tokenizer import compact
    from tinygpt_jax.training import checkpoint, step
    from tinygpt_jax.training.optimizer import make_optimizer

    vocabulary, mesh, steps = compact(np.zeros(50_257, np.int64)), step.data_mesh(), 20
    model = ModelConfig(vocabulary.vocab_size, 16, n_layers=1, n_heads=2, d_model=32, d_ff=64, dropout=0.0)
    training = TrainingConfig(batch_size=8 * mesh.size, compute_dtype="float32")
    config = Config(model, optimizer=OptimizerConfig(learning_rate=1e-2), training=training)
    optimizer = make_optimizer(config.optimizer, steps)
    state = step.initial_state(GPT(model), optimizer, 0, mesh)
    update = step.make_train_step(GPT(model), optimizer, training, mesh)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, (training.batch_size, 17)).astype(np.int32)
    batch = step.put_batch(Batch(tokens[:, :-1], tokens[:, 1:], np.ones((training.batch_size, 16), bool)), mesh)

    start, losses = time.monotonic(), []
    for number in range(steps):
        state, metrics = update(state, batch, number)
        losses.append(float(metrics.loss))
    value = f"{steps} updates in {time.monotonic() - start:.1f} s, loss {losses[0]:.2f} to {losses[-1]:.2f}"
    problem = "" if losses[-1] < 0.9 * losses[0] else "the loss did not fall"
    yield Finding("training", value, problem, "reinstall jax, or try --device cpu")

    with tempfile.TemporaryDirectory() as folder:
        saved = checkpoint.save(Path(folder), state, Progress(steps, None), config, vocabulary)
        size = sum(path.stat().st_size for path in saved.folder.rglob("*") if path.is_file())
        problem = saved.problem() or ""
        restored = checkpoint.restore_state(saved, optimizer, step.replicated(mesh))
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
    if not problem and not all(np.array_equal(a, b) for a, b in pairs):
        problem = "what was restored is not what was saved"
    value = f"{size / 1000:.0f} kB saved and restored"
    yield Finding("checkpoint", value, problem, "check the disk, or reinstall orbax-checkpoint")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"
