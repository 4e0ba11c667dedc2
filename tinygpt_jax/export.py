"""A trained model as a folder that other programs can read, and such a folder as the start of a run.

    model.safetensors   the parameters, float32, named by their path in the model: `blocks_0.attention.qkv_weight`
    config.json         the configuration, without what only the machine it was trained on knows
    tokenizer.json      the vocabulary: GPT-2's id of each token

`experiments/pytorch_reference.py` reads it without this package.
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tinygpt_jax.config import Config, DataConfig, ModelConfig
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import disk_errors, write_atomically
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
_MAX_HEADER_BYTES = 2**20  # a thousand layers need half of it
_MAX_JSON_BYTES = 2**20


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
            save_file(_flatten(run.params), partial / PARAMETERS, metadata={"step": str(run.step)})
            (partial / CONFIG).write_text(_portable(run.config).to_json(), encoding="utf-8")
            (partial / VOCABULARY).write_text(run.tokenizer.to_json(), encoding="utf-8")
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
        if (folder / name).exists() and not (folder / name).is_file():  # a pipe, say, that we would wait for for ever
            raise UserError(f"{folder / name} is not a file")
    config = _parsed(Config.from_json, folder / CONFIG)
    tokenizer = _parsed(Tokenizer.from_json, folder / VOCABULARY)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{folder / VOCABULARY} has {tokenizer.vocab_size} tokens, the model of {CONFIG} {config.model.vocab_size}"
        )
    params = read_parameters(folder / PARAMETERS, config.model)
    optimizer = make_optimizer(config.optimizer, total_steps=1)  # the number does not change its state's form
    state = TrainState(jax.numpy.int32(0), params, jax.jit(optimizer.init)(params))
    with sole_process(workdir):
        if checkpoints(workdir):
            raise UserError(f"{workdir} holds a run; choose another --workdir")
        config = _portable(config)
        write_atomically(workdir / "config.json", config.to_json().encode())
        checkpoint.save(workdir, state, Progress(step=0, corpus=None), config, tokenizer)


def read_parameters(path: Path, config: ModelConfig) -> Any:
    """The parameters of a model of this form. Names, dtypes and shapes are compared before anything is loaded.

    Raises:
        UserError: the file is not a safetensors file with exactly the model's parameters in float32.
    """
    expected = {name: x.shape for name, x in _leaves(abstract_params(config)).items()}
    _check_header_size(path)
    try:
        with safe_open(path, framework="np") as file:
            _check_names(path, set(file.keys()), set(expected))
            for name, shape in expected.items():
                part = file.get_slice(name)
                if part.get_dtype() != "F32" or tuple(part.get_shape()) != shape:
                    found = f"{part.get_dtype()} {part.get_shape()}"
                    raise UserError(f"{path}: {name} is {found}, and the model of {CONFIG} has F32 {list(shape)}")
            arrays = {name: file.get_tensor(name) for name in expected}
    except SafetensorError as error:
        raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    return _unflatten(arrays)


def _check_header_size(path: Path) -> None:
    """The first 8 bytes of the format say how long the header is that has to be parsed."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    if size > _MAX_HEADER_BYTES:
        raise UserError(f"{path} is not a safetensors file of a model: its header would have {size:,} bytes")


def _check_names(path: Path, found: set[str], expected: set[str]) -> None:
    if missing := expected - found:
        raise UserError(f"{path} lacks {min(missing)}, which the model of {CONFIG} has")
    if unknown := found - expected:
        raise UserError(f"{path} has {min(unknown)[:100]!r}, which the model of {CONFIG} has not")


def _flatten(params: Any) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in _leaves(params).items()}


def _leaves(params: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with the names joined by dots."""
    leaves: dict[str, Any] = {}
    for name, value in params.items():
        leaves |= _leaves(value, f"{path}{name}.") if isinstance(value, Mapping) else {path + name: value}
    return leaves


def _unflatten(leaves: Mapping[str, np.ndarray]) -> Any:
    params: dict[str, Any] = {}
    for path, array in leaves.items():
        *parents, name = path.split(".")
        place = params
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = jax.numpy.asarray(array)
    return params


def _portable(config: Config) -> Config:
    """Without paths: they say something about one machine, and a stranger's must not decide where we write."""
    source = config.data.source
    if source not in ("builtin", "tinystories"):
        source = Path(source).name or DataConfig.source
    return dataclasses.replace(config, data=dataclasses.replace(config.data, source=source, cache_dir=None))


def _parsed(parse: Callable[[str], Parsed], path: Path) -> Parsed:
    text = _read_text(path)
    try:
        return parse(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _read_text(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise UserError(f"{path} has {path.stat().st_size:,} bytes, more than any model's")
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is damaged: not UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a folder that experiments.export wrote") from None
