"""Is everything in order on this machine? python -m experiments.doctor

Each finding that is a problem comes with its remedy. What is printed is what a bug report should contain.
"""

import contextlib
import dataclasses
import importlib.metadata
import io
import json
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments import cli
from tinygpt_jax import devices
from tinygpt_jax.cards import cards_of_kind
from tinygpt_jax.errors import UserError, first_line
from tinygpt_jax.estimate.estimation import JAX_SHARE

_ENOUGH_DISK = 2 * 2**30  # bytes; a quickstart needs a tenth, prepared TinyStories one of the two
_ENOUGH_MEMORY = 2 * 2**30  # bytes


@dataclass(frozen=True)
class Arguments:
    """Look at versions, device, memory and folders, and try out training and checkpoints for a second.

    Each problem is printed with its remedy. The exit code is 0 where there is none, else 1.
    """

    device: devices.Device = "auto"  # gpu: it is a problem where there is none
    json: bool = False  # print one JSON object


@dataclass(frozen=True)
class Finding:
    """Something that was looked at."""

    name: str
    value: str
    problem: str = ""  # what is wrong, if anything is
    remedy: str = ""  # what to do about it


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the flags, examine, and print."""
    arguments = cli.parse(Arguments, argv)
    findings = []
    for finding in examine(arguments.device):
        findings.append(finding)
        if not arguments.json:
            print(f"{'PROBLEM' if finding.problem else 'ok':<9}{finding.name:<20}{finding.value}", flush=True)
            if finding.problem:
                print(f"{'':<9}{finding.problem}\n{'':<9}remedy: {finding.remedy}", flush=True)
    problems = sum(bool(finding.problem) for finding in findings)
    if arguments.json:
        print(json.dumps({"problems": problems, "findings": [dataclasses.asdict(finding) for finding in findings]}))
    else:
        print(f"{problems} problem{'s' * (problems > 1)}" if problems else "everything is in order")
    if problems:
        sys.exit(1)


def examine(device: devices.Device) -> Iterator[Finding]:
    """Look at versions, memory, folders and device, and try out training and checkpoints: a few seconds."""
    checks = {
        "versions": _versions(),
        "memory": _memory(),
        "folders": _folders(),
        "device": _device(device),
        "self-test": _self_test(),
    }
    for name, findings in checks.items():
        try:
            for finding in findings:
                yield finding if finding.problem else dataclasses.replace(finding, remedy="")
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
    needed = [line for line in importlib.metadata.requires("tinygpt_jax") or () if "extra ==" not in line]
    for package in ("tinygpt_jax", "jaxlib", *(re.split(r"[^\w-]", line)[0] for line in needed)):
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
    cache = devices.cache_folder()
    for name, folder, remedy in (
        ("prepared stories", cache, "set TINYGPT_CACHE to another folder, or give --cache-dir"),
        ("compiled programs", cache / "compiled", "set TINYGPT_CACHE to another folder"),
        ("temporary files", Path(tempfile.gettempdir()), "set TMPDIR to another folder"),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                free = shutil.disk_usage(folder).free
        except OSError as error:
            yield Finding(name, str(folder), f"cannot be written to: {error.strerror}", remedy)
        else:
            problem = f"less than {_gib(_ENOUGH_DISK)} free" if free < _ENOUGH_DISK else ""
            yield Finding(name, f"{folder}, {_gib(free)} free", problem, f"free some space, or {remedy}")


def _device(choice: devices.Device) -> Iterator[Finding]:
    devices.use_device(choice)
    unused = choice != "cpu" and devices.gpu_is_unused()
    problem = "an NVIDIA GPU is here but JAX does not use it" if unused else ""
    yield Finding("device", devices.describe_devices(), problem, devices.USE_THE_GPU)
    if devices.has_accelerator():
        yield Finding("device memory", f"{_gib(devices.device_memory())} for JAX")
        yield _card(devices.describe_devices().split(" x ")[-1], devices.device_memory())


def _card(kind: str, for_jax: int) -> Finding:
    """What the maker says of the GPU that JAX calls `kind`, beside what is there."""
    if not (entries := cards_of_kind(kind)):
        return Finding("card", f"{kind} is none that experiments.plan knows")
    name, card = min(entries.items(), key=lambda entry: abs(JAX_SHARE * entry[1].memory - for_jax))
    rates = f"{card.bfloat16_flops / 1e12:.0f} TFLOP/s and {card.bandwidth / 1e12:.2f} TB/s by the datasheet"
    share = f"{_gib(card.memory)}, of which JAX may take {for_jax / card.memory:.0%}"
    return Finding("card", f"{rates}, {share}; experiments.plan --gpu {name} estimates a run")


def _self_test() -> Iterator[Finding]:
    """Prepare stories and learn one batch by heart as training does, save, restore, and compare every number."""
    import jax
    import numpy as np

    from tinygpt_jax.config import Config, DataConfig, ModelConfig, OptimizerConfig, TrainingConfig
    from tinygpt_jax.data.corpus import prepare
    from tinygpt_jax.runs.checkpoint_files import Progress
    from tinygpt_jax.training import checkpoint, sharding, step
    from tinygpt_jax.training.parts import Parts

    mesh, steps = sharding.make_mesh(), 20
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            ModelConfig(context_length=16, n_layers=1, n_heads=2, d_model=32, d_ff=64, dropout=0.0),
            DataConfig("builtin", "compact", layout="packed", builtin_stories=200, cache_dir=folder),
            OptimizerConfig(learning_rate=1e-2),
            TrainingConfig(steps=steps, batch_size=8 * mesh.size),
        )
        with contextlib.redirect_stderr(io.StringIO()):  # how far it is
            parts = Parts(config, prepare(config.data), mesh)
        state = step.initial_state(parts.model, parts.optimizer, 0, mesh)
        batch = sharding.put_batch(parts.batches[0], mesh)

        start, losses = time.monotonic(), []
        for number in range(steps):
            state, metrics = parts.update(state, batch, number)
            losses.append(float(metrics.loss))
        value = f"{steps} updates in {time.monotonic() - start:.1f} s, loss {losses[0]:.2f} to {losses[-1]:.2f}"
        problem = "" if losses[-1] < 0.9 * losses[0] else "the loss did not fall"
        yield Finding("training", value, problem, "reinstall jax, or try --device cpu")

        saved = checkpoint.save(Path(folder), state, Progress(steps, None), parts.config, parts.corpus.tokenizer)
        size = sum(path.stat().st_size for path in saved.folder.rglob("*") if path.is_file())
        problem = saved.problem() or ""
        restored = checkpoint.restore_state(saved, parts.optimizer, mesh)
    pairs = zip(jax.tree.leaves(state), jax.tree.leaves(restored), strict=True)
    if not problem and not all(np.array_equal(a, b) for a, b in pairs):
        problem = "what was restored is not what was saved"
    value = f"{size / 1000:.0f} kB saved and restored"
    yield Finding("checkpoint", value, problem, "check the disk, or reinstall orbax-checkpoint")


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


if __name__ == "__main__":
    cli.run(main)
