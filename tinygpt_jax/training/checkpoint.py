"""Checkpoints on disk. This is the only file that knows Orbax.

    checkpoints/00000400/          a checkpoint: the eight-digit number of updates done
        params/, opt_state/        arrays, written by Orbax
        config.json                the run's configuration
        tokenizer.json             its vocabulary
        progress.json              see `Progress`
        manifest.json              format version, and size and sha256 of every file above

A checkpoint is written under a temporary name and renamed when it is whole and on the disk, so a folder with an
eight-digit name is complete; the manifest tells whether it has been damaged since.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import optax
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding

from tinygpt_jax.config import Config
from tinygpt_jax.errors import UserError
from tinygpt_jax.model import GPT, abstract_params
from tinygpt_jax.tokenizer import Tokenizer
from tinygpt_jax.training.step import TrainState

FORMAT_VERSION = 1
_MAX_JSON_BYTES = 64 * 2**20  # no JSON file of a checkpoint comes near this


@dataclass(frozen=True)
class Progress:
    """Where a run stands, apart from its arrays."""

    step: int  # updates done
    corpus: str  # fingerprint of the data
    validation_loss: float | None = None  # measured at this step, if it was
    unlogged: tuple[tuple[float, float], ...] = ()  # (loss, gradient norm) of updates since the last metrics line


@dataclass(frozen=True)
class Checkpoint:
    """One complete checkpoint folder."""

    folder: Path

    @property
    def step(self) -> int:
        """Updates done when it was written."""
        return int(self.folder.name)

    def config(self) -> Config:
        """The configuration it was trained with."""
        return Config.from_json(_read_text(self.folder / "config.json"))

    def tokenizer(self) -> Tokenizer:
        """The vocabulary it was trained with."""
        return Tokenizer.from_json(_read_text(self.folder / "tokenizer.json"))

    def progress(self) -> Progress:
        """Where its run stood."""
        values = json.loads(_read_text(self.folder / "progress.json"))
        return Progress(**{**values, "unlogged": tuple(tuple(pair) for pair in values["unlogged"])})

    def params(self, sharding: Sharding | None = None) -> Any:
        """The parameters, on the default device or laid out as `sharding` says."""
        return self._restore("params", abstract_params(self.config().model), sharding)

    def state(self, optimizer: optax.GradientTransformation, sharding: Sharding) -> TrainState:
        """Everything an update needs."""
        params = abstract_params(self.config().model)
        opt_state = jax.eval_shape(optimizer.init, params)
        step = jax.device_put(jax.numpy.int32(self.step), sharding)
        return TrainState(
            step, self._restore("params", params, sharding), self._restore("opt_state", opt_state, sharding)
        )

    def problem(self) -> str | None:
        """What is wrong with its files, or None: each is there, with its size and sha256."""
        manifest = self.folder / "manifest.json"
        try:
            document = json.loads(_read_text(manifest))
            version, files = document["format_version"], document["files"]
            if version != FORMAT_VERSION:
                return f"{manifest} is of format {version}, and this program reads format {FORMAT_VERSION}"
            for name, (size, digest) in files.items():
                path = self.folder / name
                if not path.resolve().is_relative_to(self.folder.resolve()):
                    return f"{manifest} names a file outside its folder: {name}"
                if not path.is_file():
                    return f"{path} is missing"
                if path.stat().st_size != size:
                    return f"{path} has {path.stat().st_size} bytes in place of {size}"
                if _sha256(path) != digest:
                    return f"{path} has changed since it was written"
        except (OSError, UserError) as error:
            return str(error)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"{manifest} is damaged"
        return None

    def _restore(self, item: str, abstract: Any, sharding: Sharding | None) -> Any:
        sharding = sharding or SingleDeviceSharding(jax.devices()[0])
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            return checkpointer.restore((self.folder / item).resolve(), args=ocp.args.StandardRestore(target))


@dataclass(frozen=True)
class Run:
    """A trained model, ready to be used."""

    config: Config
    tokenizer: Tokenizer
    params: Any
    step: int
    model: GPT


def open_run(workdir: Path, which: Literal["best", "last"] = "best") -> Run:
    """Load a run's parameters, best by validation loss or newest, onto the default device.

    A damaged checkpoint is named on standard error and passed over; nothing in the folder is changed.

    Raises:
        UserError: there is no run or no intact checkpoint.
    """
    from tinygpt_jax.devices import resolve_dtype

    found = checkpoints(workdir)
    if not found:
        what = "is not a folder" if not workdir.is_dir() else "has no checkpoint"
        raise UserError(f"{workdir} {what}: train first with python -m experiments.train --workdir {workdir}")
    candidates = list(reversed(found))
    if which == "best":
        candidates.sort(key=_validation_loss)  # stable: the newest of equals stays first
    for checkpoint in candidates:
        problem = checkpoint.problem()
        if problem is None:
            config = checkpoint.config()
            model = GPT(config.model, compute_dtype=resolve_dtype(config.training.compute_dtype))
            return Run(config, checkpoint.tokenizer(), checkpoint.params(), checkpoint.step, model)
        print(f"warning: passing over a damaged checkpoint: {problem}", file=sys.stderr)
    raise UserError(f"{workdir} has no intact checkpoint")


def checkpoints(workdir: Path) -> list[Checkpoint]:
    """The complete checkpoints of a run, oldest first."""
    folder = workdir / "checkpoints"
    if not folder.is_dir():
        return []
    names = sorted(entry.name for entry in folder.iterdir() if _is_checkpoint_name(entry.name))
    return [Checkpoint(folder / name) for name in names]


def newest_intact(workdir: Path) -> Checkpoint | None:
    """The checkpoint to resume from. Damaged newer ones are renamed to `<step>.damaged`, and named on standard error.

    Raises:
        UserError: there are checkpoints, and all are damaged; nothing has been touched.
    """
    damaged: list[tuple[Checkpoint, str]] = []
    for checkpoint in reversed(checkpoints(workdir)):
        problem = checkpoint.problem()
        if problem is None:
            for bad, why in damaged:
                aside = bad.folder.with_name(f"{bad.folder.name}.damaged")
                shutil.rmtree(aside, ignore_errors=True)
                bad.folder.rename(aside)
                print(f"warning: set aside {aside}: {why}", file=sys.stderr)
            return checkpoint
        damaged.append((checkpoint, problem))
    if damaged:
        raise UserError(
            f"every checkpoint of {workdir} is damaged ({damaged[0][1]}); nothing was changed: "
            "restore the folder from a copy, or train into another --workdir"
        )
    return None


def save(workdir: Path, state: TrainState, progress: Progress, config: Config, tokenizer: Tokenizer) -> Checkpoint:
    """Write a checkpoint, then remove those that are neither among the newest two nor the best.

    Raises:
        UserError: it could not be written, for want of space for example; earlier checkpoints are as they were.
    """
    parent = workdir / "checkpoints"
    final = Checkpoint(parent / f"{progress.step:08d}")
    temporary = parent / f".writing-{progress.step:08d}"
    if final.folder.exists():  # a run is deterministic: it holds this state
        return final
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
            for item in ("params", "opt_state"):
                target = (temporary / item).resolve()
                checkpointer.save(target, args=ocp.args.StandardSave(getattr(state, item)))
        (temporary / "config.json").write_text(config.to_json(), encoding="utf-8")
        (temporary / "tokenizer.json").write_text(tokenizer.to_json(), encoding="utf-8")
        (temporary / "progress.json").write_text(json.dumps(dataclasses.asdict(progress)) + "\n", encoding="utf-8")
        _write_manifest(temporary)
        temporary.rename(final.folder)
        _sync(parent)
    except Exception as error:  # Orbax wraps what the file system says in exceptions of several libraries
        shutil.rmtree(temporary, ignore_errors=True)
        kept = checkpoints(workdir)
        last = f"the checkpoint of step {kept[-1].step} is intact" if kept else "there is no earlier one"
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"could not write a checkpoint to {parent}: {reason}; {last}") from error
    _remove_old(workdir)
    return final


def remove_unfinished(workdir: Path) -> None:
    """Clear what a killed save left behind. Only for the process that holds the run's lock."""
    for leftover in (workdir / "checkpoints").glob(".writing-*"):
        shutil.rmtree(leftover)


def _remove_old(workdir: Path) -> None:
    found = checkpoints(workdir)
    best = min(reversed(found), key=_validation_loss)
    for checkpoint in found[:-2]:
        if checkpoint != best:
            shutil.rmtree(checkpoint.folder)


def _validation_loss(checkpoint: Checkpoint) -> float:
    """For ordering: infinite where it was not measured or cannot be read."""
    try:
        loss = checkpoint.progress().validation_loss
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return float("inf")
    return float("inf") if loss is None else loss


def _write_manifest(folder: Path) -> None:
    files = {}
    for path in _files(folder):
        _sync(path)
        files[path.relative_to(folder).as_posix()] = [path.stat().st_size, _sha256(path)]
    manifest = folder / "manifest.json"
    manifest.write_text(json.dumps({"format_version": FORMAT_VERSION, "files": files}, indent=1) + "\n")
    _sync(manifest)
    for directory in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        _sync(directory)


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read_text(path: Path) -> str:
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise UserError(f"{path} is {path.stat().st_size} bytes long, more than any run writes")
    return path.read_text(encoding="utf-8")


def _is_checkpoint_name(name: str) -> bool:
    return len(name) == 8 and name.isascii() and name.isdigit()
