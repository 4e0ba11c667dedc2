"""Parameters by name, in safetensors files of which nothing is trusted."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from tinygpt_jax.config import ModelConfig
from tinygpt_jax.errors import UserError
from tinygpt_jax.files import MAX_JSON_BYTES
from tinygpt_jax.model import abstract_params

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a file."""

    path: Path
    name: str  # there
    dtype: str  # as the file calls it: F32, BF16
    shape: Shape


def named(params: Any) -> dict[str, Any]:
    """The leaves of nested dictionaries, in their order, with their names joined by dots."""
    leaves = jax.tree.leaves_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def parameter_shapes(config: ModelConfig) -> dict[str, Shape]:
    """The shape of each parameter of a model, which is cheap to ask for however many layers a stranger's has."""
    one = {name: leaf.shape for name, leaf in named(abstract_params(replace(config, n_layers=1))).items()}
    block = {name: one.pop(name) for name in list(one) if name.startswith("blocks_0.")}
    layers = (name.replace("_0", f"_{layer}", 1) for layer in range(config.n_layers) for name in block)
    return one | dict(zip(layers, [*block.values()] * config.n_layers, strict=True))


def assembled(config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> Any:
    """The inverse of `named`, on the default device."""
    form = abstract_params(config)
    leaves = [jax.numpy.asarray(arrays[name]) for name in named(form)]
    return jax.tree.unflatten(jax.tree.structure(form), leaves)


def stored_tensors(paths: Sequence[Path], called: Callable[[str], str] = str) -> dict[str, Stored]:
    """What safetensors files say they hold, by name. Nothing is loaded.

    Args:
        paths: the files of one model.
        called: what a tensor is called here that has this name there.

    Raises:
        UserError: one is not a whole safetensors file, or two tensors have the same name.
    """
    found: dict[str, Stored] = {}
    for path in paths:
        if not path.is_file():  # a pipe, say, that we would wait for for ever
            raise UserError(f"{path} is not a file")
        with path.open("rb") as file:
            header = int.from_bytes(file.read(8), "little")  # so long is the header that has to be parsed
        if header > MAX_JSON_BYTES:
            raise UserError(f"{path} is not a safetensors file of a model: its header would have {header:,} bytes")
        try:
            with safe_open(path, framework="np") as file:
                for there in file.keys():  # noqa: SIM118, it is no dict
                    name, part = called(there), file.get_slice(there)
                    if name in found:
                        raise UserError(f"{path} holds {name[:100]!r}, and so does {found[name].path}: one too many")
                    found[name] = Stored(path, there, part.get_dtype(), tuple(part.get_shape()))
        except SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    return found


def check_form(
    stored: Mapping[str, Stored], expected: Mapping[str, Shape], place: Path, dtypes: Collection[str] = ("F32",)
) -> None:
    """Raise UserError unless the tensors are those of the model: names, dtypes and shapes."""
    for name in sorted(expected.keys() | stored.keys()):
        tensor, shape = stored.get(name), expected.get(name)
        if tensor is None or tensor.shape != shape or tensor.dtype not in dtypes:
            here = "absent" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
            there = "absent" if shape is None else f"{' or '.join(dtypes)} {list(shape)}"
            where = place if tensor is None else tensor.path
            raise UserError(f"{where}: {name[:100]!r} is {here[:100]}, and in the model of config.json {there}")


def load_tensors(stored: Mapping[str, Stored]) -> dict[str, np.ndarray]:
    """The tensors themselves, in float32.

    Raises:
        UserError: a file is damaged, or a number is not finite.
    """
    arrays: dict[str, np.ndarray] = {}
    for path in dict.fromkeys(tensor.path for tensor in stored.values()):
        try:
            with safe_open(path, framework="np") as file:
                for name, tensor in stored.items():
                    if tensor.path == path:
                        arrays[name] = file.get_tensor(tensor.name).astype(np.float32, copy=False)
        except SafetensorError as error:
            raise UserError(f"{path} is not a whole safetensors file: {error}") from None
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            path = stored[name].path
            raise UserError(f"{path}: {name} has numbers that are not finite; take another copy of the model")
    return arrays


def save_tensors(arrays: Mapping[str, Any], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a file that everybody may read who may read its neighbours."""
    path.touch()
    mode = path.stat().st_mode
    save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path, metadata=dict(metadata))
    path.chmod(mode)  # safetensors lets nobody else read it
