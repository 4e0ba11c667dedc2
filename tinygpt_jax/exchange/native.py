"""A model's folder in our own form, for programs that want to do the arithmetic themselves.

    model.safetensors   the parameters, float32, named by their path in the model: `blocks_0.attention.qkv_weight`
    config.json         the configuration, without what only the machine it was trained on knows
    tokenizer.json      the vocabulary: GPT-2's id of each token

`experiments/pytorch_reference.py` reads it without this package.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from tinygpt_jax.config import Config, ModelConfig
from tinygpt_jax.errors import UserError
from tinygpt_jax.exchange.folders import CONFIG, PARAMETERS, new_folder, portable
from tinygpt_jax.exchange.tensors import (
    assembled,
    check_form,
    load_tensors,
    named,
    parameter_shapes,
    save_tensors,
    stored_tensors,
)
from tinygpt_jax.files import read_text
from tinygpt_jax.tokenizer import Tokenizer
from tinygpt_jax.training.checkpoint import Run

VOCABULARY = "tokenizer.json"
Parsed = TypeVar("Parsed")


def export_native(run: Run, folder: Path) -> None:
    """Write a model's folder, whole or not at all.

    Raises:
        UserError: the folder exists, or cannot be written.
    """
    with new_folder(folder) as partial:
        (partial / CONFIG).write_text(portable(run.config).to_json(), encoding="utf-8")
        (partial / VOCABULARY).write_text(run.tokenizer.to_json(), encoding="utf-8")
        save_tensors(named(run.params), partial / PARAMETERS, {"step": str(run.step)})


def read_native(folder: Path) -> tuple[Config, Tokenizer, Any]:
    """Configuration, vocabulary and parameters.

    Raises:
        UserError: the folder is not one that `export_native` writes.
    """
    for name in (PARAMETERS, CONFIG, VOCABULARY):
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is not a file; give a folder that experiments.export wrote")
    config = _parsed(Config.from_json, folder / CONFIG)
    tokenizer = _parsed(Tokenizer.from_json, folder / VOCABULARY)
    if tokenizer.vocab_size != config.model.vocab_size:
        raise UserError(
            f"{folder / VOCABULARY} has {tokenizer.vocab_size} tokens, the model of {CONFIG} {config.model.vocab_size}"
        )
    return portable(config), tokenizer, read_parameters(folder / PARAMETERS, config.model)


def read_parameters(path: Path, config: ModelConfig) -> Any:
    """The parameters of a model of this form. Names, dtypes and shapes are compared before anything is loaded.

    Raises:
        UserError: the file is not a safetensors file with exactly the model's parameters in float32, all finite.
    """
    stored = stored_tensors([path])
    check_form(stored, parameter_shapes(config), path)
    return assembled(config, load_tensors(stored))


def _parsed(parse: Callable[[str], Parsed], path: Path) -> Parsed:
    text = read_text(path)
    try:
        return parse(text)
    except UserError as error:
        raise UserError(f"{path}: {error}; export the model again") from None
