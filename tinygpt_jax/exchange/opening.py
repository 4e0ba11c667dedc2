"""Whatever holds a model, opened: a run's folder, a folder that was exported, a GPT-2, by path or name."""

import json
from pathlib import Path
from typing import Any

import jax

from tinygpt_jax.arithmetic import resolve_arithmetic
from tinygpt_jax.config import Config
from tinygpt_jax.devices import resolve_dtype
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.exchange.folders import CONFIG
from tinygpt_jax.exchange.hub import local_path
from tinygpt_jax.exchange.hugging_face import read_hugging_face, tensor_files
from tinygpt_jax.exchange.native import read_native
from tinygpt_jax.files import disk_errors, read_text, write_atomically
from tinygpt_jax.model import GPT
from tinygpt_jax.runs.checkpoint_files import Progress, checkpoints
from tinygpt_jax.runs.folder import check_folder, sole_process
from tinygpt_jax.tokenizer import Tokenizer
from tinygpt_jax.training import checkpoint
from tinygpt_jax.training.checkpoint import Run, open_run
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.step import TrainState

_OTHERS = "an exported or published model"


def open_model(source: str | Path, context_length: int | None = None) -> Run:
    """A model from any of these; where it is no run's folder, after 0 updates.

    Args:
        source: a run's folder (its best checkpoint); a folder that experiments.export wrote, in either form; a folder
            of a GPT-2, a GPT-Neo, an OpenAI GPT or a GPT-NeoX with GPT-2's tokenizer, or the .safetensors file in it;
            or such a model's name at the hub.
        context_length: keep only so many of the learned positions of a Hugging Face model (default: all).

    Raises:
        UserError: it is none of these, or damaged, or the hub is out of reach.
        UsageError: the model has fewer positions, or they cannot be cut.
    """
    path = local_path(source)
    if checkpoints(path):
        _has_no_table(path, context_length)
        return open_run(path)
    config, tokenizer, params = _read(path, context_length, f"a run, or of {_OTHERS}")
    model = GPT(config.model, resolve_dtype(config.training.compute_dtype), arithmetic=resolve_arithmetic())
    return Run(config, tokenizer, params, 0, model, None)


def import_model(source: str | Path, workdir: Path, context_length: int | None = None) -> None:
    """Make a run's folder of a model: a run after 0 updates that starts from these parameters.

    It can be evaluated and written with, and trained further, on any stories that have its vocabulary.

    Args:
        source: as for `open_model`, but for a run.
        workdir: the run's folder.
        context_length: as for `open_model`.

    Raises:
        UserError: the source holds no model, or `workdir` holds a run.
    """
    check_folder(workdir)
    path = local_path(source)
    if checkpoints(path):
        raise UserError(
            f"{path} is a run already: train further in it, or begin another run from it with "
            f"python -m experiments.train --init-from {path}"
        )
    config, tokenizer, params = _read(path, context_length, _OTHERS)
    optimizer = make_optimizer(config.optimizer, total_steps=1)  # the number does not change its state's form
    state = TrainState(jax.numpy.int32(0), params, jax.jit(optimizer.init)(params))
    with sole_process(workdir), disk_errors(workdir, "make room or give permission there, or choose another --workdir"):
        if checkpoints(workdir):
            raise UserError(f"{workdir} holds a run; choose another --workdir")
        write_atomically(workdir / CONFIG, config.to_json().encode())
        checkpoint.save(workdir, state, Progress(step=0, corpus=None), config, tokenizer)


def _read(path: Path, context_length: int | None, wanted: str) -> tuple[Config, Tokenizer, Any]:
    """What is no run. `wanted` says whose folder it should have been."""
    if not path.is_dir() and path.suffix != ".safetensors":
        raise UserError(
            f"{path} is no .safetensors file, and nothing else is read; give one, or the folder of {wanted}"
        )
    folder = path if path.is_dir() else path.parent
    document = _document(folder / CONFIG, wanted)
    if "model_type" not in document:
        _has_no_table(folder, context_length)
        return read_native(folder)
    return read_hugging_face(document, tensor_files(folder) if path.is_dir() else [path], folder, context_length)


def _document(path: Path, wanted: str) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path} is not a file; give the folder of {wanted}")
    try:
        document = json.loads(read_text(path))
        if isinstance(document, dict):
            return document
        problem: object = "not a JSON object"
    except (ValueError, RecursionError) as error:
        problem = error
    raise UserError(f"{path} is damaged: {problem}; export the model again or take another copy")


def _has_no_table(path: Path, context_length: int | None) -> None:
    if context_length is not None:
        raise UsageError(f"--context-length {context_length}: {path} keeps the context it was trained with")
