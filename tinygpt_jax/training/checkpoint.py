"""Checkpoints on disk. This is the only file that knows Orbax.

    checkpoints/00000400/          a checkpoint: the eight-digit number of updates done
        params/, opt_state/        arrays, written by Orbax
        config.json                the run's configuration
        tokenizer.json             its vocabulary
        progress.json              see `Progress`
        manifest.json              format version, and size and sha256 of every file above, and sha256 of itself

A checkpoint is written under a temporary name and renamed when it is whole and on the disk, so a folder with an
eight-digit name is complete; the manifest tells whether it has been damaged since.
"""

import logging
import shutil
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import optax
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from tinygpt_jax.arithmetic import resolve_arithmetic
from tinygpt_jax.config import Config
from tinygpt_jax.devices import resolve_dtype
from tinygpt_jax.distributed.together import is_first
from tinygpt_jax.errors import UserError, first_line
from tinygpt_jax.files import sync
from tinygpt_jax.model import GPT, abstract_params
from tinygpt_jax.runs.checkpoint_files import (
    Checkpoint,
    DamageError,
    Progress,
    checkpoints,
    while_it_trains,
    write_manifest,
)
from tinygpt_jax.tokenizer import Tokenizer
from tinygpt_jax.training.sharding import in_parts, replicated
from tinygpt_jax.training.step import TrainState
from tinygpt_jax.training.thinning import remove_old


@dataclass(frozen=True)
class Run:
    """A trained model, ready to be used."""

    config: Config
    tokenizer: Tokenizer
    params: Any
    step: int
    model: GPT
    corpus: str | None  # fingerprint of the stories it was trained on, where that is known


@while_it_trains
def open_run(workdir: Path, which: Literal["best", "last"] = "best") -> Run:
    """Load a run's parameters, best by validation loss or newest, onto the default device.

    A damaged checkpoint is named on standard error and passed over; nothing in the folder is changed, and the
    optimizer's state is not looked at.

    Raises:
        UserError: there is no run or no intact checkpoint.
    """
    found = checkpoints(workdir)
    if not found:
        if workdir.is_file():
            raise UserError(f"{workdir} is a file: give the folder of a run")
        what = "is not a folder" if not workdir.is_dir() else "has no checkpoint"
        raise UserError(f"{workdir} {what}: train first with python -m experiments.train --workdir {workdir}")
    readable = []
    for saved in reversed(found):
        with _passing_over_damage():
            saved.progress()  # without it nobody knows whether this is the best
            readable.append(saved)
    if which == "best":
        readable.sort(key=lambda saved: saved.validation_loss)  # stable: the newest of equals stays first
    for saved in readable:
        with _passing_over_damage():
            return _open(saved)
    raise UserError(f"{workdir} has no intact checkpoint: restore the folder from a copy, or train anew")


@while_it_trains
def open_all(workdir: Path, steps: Collection[int] | None = None) -> list[Run]:
    """Every checkpoint of a run as `open_run` loads one, from first to last, or those after so many steps.

    Raises:
        UserError: as `open_run`.
    """
    opened = []
    for saved in checkpoints(workdir):
        if steps is None or saved.step in steps:
            with _passing_over_damage():
                opened.append(_open(saved))
    return opened or [open_run(workdir)]  # which says what is wrong


def _open(saved: Checkpoint) -> Run:
    saved.check(without="opt_state")
    config = saved.config()
    model = GPT(config.model, resolve_dtype(config.training.compute_dtype), arithmetic=resolve_arithmetic())
    params = _restore(saved, "params", abstract_params(config.model))
    return Run(config, saved.tokenizer(), params, saved.step, model, saved.progress().corpus)


def newest_intact(workdir: Path) -> Checkpoint | None:
    """The checkpoint to resume from. Damaged newer ones are renamed to `<step>.damaged`, and named on standard error.

    Raises:
        UserError: there are checkpoints, and all are damaged; nothing has been touched.
    """
    damaged: dict[Checkpoint, str] = {}
    for saved in reversed(checkpoints(workdir)):
        if problem := saved.problem():
            damaged[saved] = problem
            continue
        for other, why in damaged.items():
            aside = other.folder.with_name(f"{other.folder.name}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            other.folder.rename(aside)
            print(f"warning: set aside {aside}: {why}", file=sys.stderr)
        return saved
    if damaged:
        raise UserError(
            f"every checkpoint of {workdir} is damaged ({next(iter(damaged.values()))}); nothing was changed: "
            "restore the folder from a copy, or train into another --workdir"
        )
    return None


def restore_state(checkpoint: Checkpoint, optimizer: optax.GradientTransformation, mesh: Mesh) -> TrainState:
    """Everything an update needs, on the devices of a mesh, which need not be the one that it was saved from.

    Raises:
        UserError: the arrays are not those of the configuration beside them.
    """
    params = abstract_params(checkpoint.config().model)
    opt_state = jax.eval_shape(optimizer.init, params)
    return TrainState(
        jax.device_put(jax.numpy.int32(checkpoint.step), replicated(mesh)),
        _restore(checkpoint, "params", params, in_parts(params, mesh)),
        _restore(checkpoint, "opt_state", opt_state, in_parts(opt_state, mesh)),
    )


def save(workdir: Path, state: TrainState, progress: Progress, config: Config, tokenizer: Tokenizer) -> Checkpoint:
    """Write a checkpoint, then remove those that need not stay (see `thinning`).

    Every process of a run writes the arrays that it holds, and process 0 all the rest.

    Raises:
        UserError: it could not be written, for want of space for example; earlier checkpoints are as they were.
    """
    parent, final = workdir / "checkpoints", Checkpoint.of(workdir, progress.step)
    temporary = parent / f".writing-{progress.step:08d}"
    if final.folder.exists():  # a run is deterministic: it holds this state
        return final
    try:
        if is_first():
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
        with _quietly(), _checkpointer() as checkpointer:
            for item in ("params", "opt_state"):
                target = (temporary / item).resolve()
                checkpointer.save(target, args=ocp.args.StandardSave(getattr(state, item)))
        if not is_first():
            return final
        for name, said in (("config", config), ("tokenizer", tokenizer), ("progress", progress)):
            (temporary / f"{name}.json").write_text(said.to_json(), encoding="utf-8")
        write_manifest(temporary)
        for marked in (workdir / name for name in progress.files):
            if marked.exists():
                sync(marked)
        temporary.rename(final.folder)
        sync(parent)
    except Exception as error:  # Orbax wraps what the file system says in exceptions of several libraries
        if is_first():
            shutil.rmtree(temporary, ignore_errors=True)
        kept = checkpoints(workdir)
        last = f"the checkpoint of step {kept[-1].step} is intact" if kept else "there is no earlier one"
        raise UserError(f"could not write a checkpoint to {parent}: {first_line(error)}; {last}") from error
    remove_old(workdir, keep_some_of_all=config.training.checkpoints == "all")
    return final


def _checkpointer(alone: bool = False, **options: Any) -> ocp.Checkpointer:
    """Orbax's, for all processes that there are, or for this one alone.

    Told who they are, they wait for each other through JAX's service and not on the devices, where training goes on.
    """
    together = ocp.options.MultiprocessingOptions()
    if jax.process_count() > 1:
        me = jax.process_index()
        together = ocp.options.MultiprocessingOptions(
            primary_host=me if alone else 0,
            active_processes={me} if alone else set(range(jax.process_count())),
            barrier_sync_key_prefix=f"alone_{me}" if alone else None,
        )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=together, **options)
    return ocp.Checkpointer(handler, multiprocessing_options=together)


@contextmanager
def _passing_over_damage() -> Iterator[None]:
    try:
        yield
    except DamageError as error:
        print(f"warning: passing over a damaged checkpoint: {error}", file=sys.stderr)


def _restore(checkpoint: Checkpoint, item: str, abstract: Any, sharding: Any = None) -> Any:
    """Arrays on the devices that `sharding` says, by all processes; without it on one of this process, by it alone."""
    alone = sharding is None
    if alone:
        sharding = jax.tree.map(lambda _: SingleDeviceSharding(jax.local_devices()[0]), abstract)
    target = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract, sharding)
    folder = (checkpoint.folder / item).resolve()
    # The file says for itself in what pieces it is stored, and a stranger's may say pieces of any size.
    gigabytes = 1 + sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(target)) // 10**9
    try:
        with _quietly(), _checkpointer(alone, restore_concurrent_gb=gigabytes) as checkpointer:
            arrays = checkpointer.restore(folder, args=ocp.args.StandardRestore(target))
    except Exception as error:  # as many kinds as there are libraries below
        checkpoint.raise_if_gone()
        raise UserError(f"{folder} does not hold the arrays of the configuration: {first_line(error)}") from error
    checkpoint.raise_if_gone()  # else what was read may be half of it
    return arrays


@contextmanager
def _quietly() -> Iterator[None]:
    """Nothing but the exception says what failed: Orbax, asyncio and TensorStore would say it too, with tracebacks.

    After a failure it stays so, because their threads go on to complain for a while.
    """
    loggers, hook = [logging.getLogger(name) for name in ("absl", "asyncio")], sys.unraisablehook
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = lambda _: None
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
    sys.unraisablehook = hook
