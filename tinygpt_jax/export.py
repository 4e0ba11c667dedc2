"""A trained model as a folder that other programs can read, and such a folder as the start of a run.

    model.safetensors   the parameters, float32, named by their path in the model: `blocks_0.attention.qkv_weight`
    config.json         the configuration, without what only the machine it was trained on knows
    tokenizer.json      the vocabulary: GPT-2's id of each token

`experiments/pytorch_reference.py` reads it without this package.
"""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tinygpt_jax.config import Config, DataConfig, ModelConfig
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import MAX_JSON_BYTES, disk_errors, read_text, sync, write_atomically
from tinygpt_jax.model import abstract_params
from tinygpt_jax.runs.checkpoint_files import Progress, checkpoints
from tinygpt_jax.runs.folder import check_folder, sole_process
from tinygpt_jax.tokenizer import Tokenizer
from tinygpt_jax.training import checkpoint
from tinygpt_jax.training.checkpoint import Run
from tinygpt_jax.training.optimizer import make_optimizer
from tinygpt_jax.training.step import TrainState

Parsed = TypeVar("Parsed")

PARAMETERS, CONFIG, VOCABULARY = "model.safetensors", "config.json", "tokenizer.json"


def export_model(run: Run, folder: Path) -> None:
    """Write a model's folder, whole or not at all.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    if folder.exists():
        raise UserError(f"{folder} exists; choose another folder, or remove it")
    partial = folder.with_name(f".{folder.name}.partial")
    with disk_errors(folder, "make room or give permission there, or choose another folder"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            (partial / CONFIG).write_text(_portable(run.config).to_json(), encoding="utf-8")
            (partial / VOCABULARY).write_text(run.tokenizer.to_json(), encoding="utf-8")
            arrays = {name: np.asarray(x) for name, x in _leaves(run.params).items()}
            save_file(arrays, partial / PARAMETERS, metadata={"step": str(run.step)})
            shutil.copymode(partial / CONFIG, partial / PARAMETERS)  # safetensors lets nobody else read it
            for path in partial.iterdir():
                sync(path)
            partial.rename(folder)
        except SafetensorError as error:
            raise UserError(f"cannot write {folder / PARAMETERS}: {error}") from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def import_model(folder: Path, workdir: Path) -> None:
    """Make a run folder of a model's folder: a run after 0 updates that starts from these parameters.

    It can be evaluated and written with, and trained further, on any stories that have its vocabulary.

    Raises:
        UserError: the folder is not one that `export_model` writes, or `workdir` holds a run.
    """
    check_folder(workdir)
    for name in (PARAMETERS, CONFIG, VOCABULARY):
        if not (folder / name).is_file():  # a pipe, say, that we would wait for for ever
            raise UserError(f"{folder / name} is not a file; give a folder that experiments.export wrote")
    config = _parsed(Config.from_json, folder / CONFIG)
    tokenizer = _parsed(Tokenizer.from_json, folder / VOCABULARY)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{folder / VOCABULARY} has {tokenizer.vocab_size} tokens, the model of {CONFIG} {config.model.vocab_size}"
        )
    params = read_parameters(folder / PARAMETERS, config.model)
    optimizer = make_optimizer(config.optimizer, total_steps=1)  # the number does not change its state's form
    state = TrainState(jax.numpy.int32(0), params, jax.jit(optimizer.init)(params))
    with sole_process(workdir), disk_errors(workdir, "make room or give permission there, or choose another --workdir"):
        if checkpoints(workdir):
            raise UserError(f"{workdir} holds a run; choose another --workdir")
        config = _portable(config)
        write_atomically(workdir / "config.json", config.to_json().encode())
        checkpoint.save(workdir, state, Progress(step=0, corpus=None), config, tokenizer)


def read_parameters(path: Path, config: ModelConfig) -> Any:
    """The parameters of a model of this form. Names, dtypes and shapes are compared before anything is loaded.

    Raises:
        UserError: the file is not a safetensors file with exactly the model's parameters in float32, all finite.
    """
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")  # so long is the header that has to be parsed
    if header > MAX_JSON_BYTES:
        raise UserError(f"{path} is not a safetensors file of a model: its header would have {header:,} bytes")
    form = abstract_params(config)
    expected = {name: f"F32 {list(x.shape)}" for name, x in _leaves(form).items()}
    try:
        with safe_open(path, framework="np") as file:
            parts = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            found = {name: f"{part.get_dtype()} {part.get_shape()}" for name, part in parts.items()}
            for name in sorted(expected.keys() | found.keys()):
                here, there = found.get(name, "absent"), expected.get(name, "absent")
                if here != there:
                    raise UserError(f"{path}: {name[:100]!r} is {here[:100]}, and in the model of {CONFIG} {there}")
            arrays = {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    if broken := [name for name, array in arrays.items() if not np.isfinite(array).all()]:
        raise UserError(f"{path}: {broken[0]} has numbers that are not finite; export the model again from a run")
    return jax.tree.map(jax.numpy.asarray, jax.tree.unflatten(jax.tree.structure(form), arrays.values()))


def _leaves(params: Any) -> dict[str, Any]:
    """The leaves of nested dictionaries, in their order, with their names joined by dots."""
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _portable(config: Config) -> Config:
    """Without paths: they say something about one machine, and a stranger's must not decide where we write."""
    source = config.data.source
    if source not in ("builtin", "tinystories"):
        source = Path(source).name or DataConfig.source
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=source, cache_dir=None))


def _parsed(parse: Callable[[str], Parsed], path: Path) -> Parsed:
    text = read_text(path)
    try:
        return parse(text)
    except UserError as error:
        raise UserError(f"{path}: {error}; export the model again") from None
