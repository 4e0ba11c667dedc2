"""A model's folder that Hugging Face's stock classes open, and the folders of their models.

config.json                  the configuration of a stock class, and the run's own under `tinygpt_jax`
model.safetensors            its tensors, float32; of others also in pieces, with model.safetensors.index.json
tokenizer.json, tokenizer_config.json, generation_config.json, README.md
embedding.safetensors        only of an untied head and scaled embeddings: the embedding before it was scaled
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tinygpt_jax.config import Config, DataConfig
from tinygpt_jax.errors import UsageError, UserError
from tinygpt_jax.exchange.folders import CONFIG, PARAMETERS, new_folder, portable
from tinygpt_jax.exchange.stock_config import attention_window, model_config, stock_config
from tinygpt_jax.exchange.stock_tokenizer import read_tokenizer, tokenizer_config, tokenizer_json
from tinygpt_jax.exchange.stock_weights import (
    HEAD,
    MASK,
    bare,
    from_stock,
    stock_shapes,
    to_stock,
    with_scale,
    without_scale,
)
from tinygpt_jax.exchange.tensors import assembled, check_form, load_tensors, named, save_tensors, stored_tensors
from tinygpt_jax.files import read_text
from tinygpt_jax.tokenizer import Tokenizer
from tinygpt_jax.training.checkpoint import Run

INDEX, OURS, _EMBEDDING = "model.safetensors.index.json", "tinygpt_jax", "embedding.safetensors"
_FLOATS = ("F32", "F16", "BF16")


def export_hugging_face(run: Run, folder: Path, card: str) -> None:
    """Write a folder that AutoModelForCausalLM and AutoTokenizer open, whole or not at all.

    Args:
        run: the model.
        folder: the new folder.
        card: its README.md.

    Raises:
        UserError: no stock class computes this model; or the folder exists, or cannot be written.
    """
    before = {name: np.asarray(x) for name, x in named(run.params).items()}
    config, arrays = without_scale(run.config.model, before)
    stock = stock_config(config)
    end = {"bos_token_id": run.tokenizer.end_of_text, "eos_token_id": run.tokenizer.end_of_text}
    own = json.loads(portable(run.config).to_json())
    texts = {
        CONFIG: _json(stock | end | {OURS: own}),
        "generation_config.json": _json({**end, "pad_token_id": run.tokenizer.end_of_text}),
        "tokenizer.json": tokenizer_json(run.tokenizer),
        "tokenizer_config.json": _json(tokenizer_config(run.tokenizer, config.context_length)),
        "README.md": card,
    }
    embedding = before["token_embedding"]
    found = with_scale(config, arrays)[1]["token_embedding"]
    with new_folder(folder) as partial:
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        save_tensors(to_stock(stock["model_type"], config, arrays), partial / PARAMETERS, {"format": "pt"})
        if not np.array_equal(embedding, found):
            save_tensors({"token_embedding": embedding}, partial / _EMBEDDING, {})


def read_hugging_face(
    document: Mapping[str, Any], files: list[Path], folder: Path, context_length: int | None
) -> tuple[Config, Tokenizer, Any]:
    """Configuration, vocabulary and parameters of a GPT-2, a GPT-Neo, an OpenAI GPT or a GPT-NeoX.

    What is not as it was in the file is said on standard error.

    Args:
        document: its config.json.
        files: where its tensors are.
        folder: where the rest is.
        context_length: how many of its positions are kept (default: all that it computes as we do).

    Raises:
        UserError: it is another model, or damaged.
        UsageError: it has fewer positions.
    """
    place = folder / CONFIG
    try:
        whole = model_config(document)
        window = attention_window(document)
        tokenizer = read_tokenizer(folder, whole.vocab_size)
        own = _own_config(document, tokenizer)
    except UsageError as error:
        raise UserError(f"{place}: {error}") from None
    kind = document["model_type"]
    stored = {name: x for name, x in stored_tensors(files, called=bare).items() if not MASK.fullmatch(name)}
    shapes = stock_shapes(kind, whole)
    if whole.tie_embeddings and HEAD in stored:
        shapes[HEAD] = (whole.vocab_size, whole.d_model)
    check_form(stored, shapes, files[0], _FLOATS)
    tensors = load_tensors(stored)
    table = next(name for name in tensors if name in ("wte.weight", "tokens_embed.weight", "embed_in.weight"))
    if whole.tie_embeddings and not np.array_equal(tensors.pop(HEAD, tensors[table]), tensors[table]):
        raise UserError(f"{files[0]}: {HEAD} is not {table}, and {CONFIG} says that they are tied")
    config = replace(whole, context_length=_context(whole.context_length, window, context_length))
    if types := sorted({tensor.dtype for tensor in stored.values()} - {"F32"}):
        print(f"note: {' and '.join(types)} became float32", file=sys.stderr)
    model, arrays = with_scale(config, from_stock(kind, config, tensors), _embedding(folder, shapes[table]))
    return replace(own, model=model), tokenizer, assembled(model, arrays)


def tensor_files(folder: Path) -> list[Path]:
    """The safetensors file of a folder, or those that its index names.

    Raises:
        UserError: there is neither, or the index is damaged.
    """
    if not (folder / INDEX).exists():
        if (folder / PARAMETERS).exists() or not list(folder.glob("pytorch_model*.bin")):
            return [folder / PARAMETERS]
        raise UserError(
            f"{folder} has its tensors in pytorch_model.bin alone, which can hold programs and is not read; make "
            f"safetensors of it: python -m experiments.convert_pytorch --model {folder} --to FOLDER"
        )
    path = folder / INDEX
    try:
        names = sorted(set(json.loads(read_text(path))["weight_map"].values()))
        if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
            raise ValueError("it names no safetensors files of its folder")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path} is damaged: {error}") from None
    return [folder / name for name in names]


def _context(positions: int, window: int | None, wanted: int | None) -> int:
    """How many positions are kept."""
    most = positions if window is None else min(positions, window)
    if wanted is not None:
        if not 1 <= wanted <= most:
            why = f"some of its layers see {window} tokens" if most < positions else f"it has {positions} positions"
            raise UsageError(f"--context-length {wanted}: must be between 1 and {most}, as {why}")
        return wanted
    if most < positions:
        print(
            f"note: the context is cut from {positions} to {most} tokens: some layers see so many, and within them "
            "attend as ours do",
            file=sys.stderr,
        )
    return most


def _own_config(document: Mapping[str, Any], tokenizer: Tokenizer) -> Config:
    """The configuration that a run was exported with; of a stranger's model the default."""
    if OURS not in document:
        return Config(data=DataConfig(vocabulary=tokenizer.name))
    return portable(Config.from_json(json.dumps(document[OURS])))


def _embedding(folder: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    path = folder / _EMBEDDING
    if not path.is_file():
        return None
    stored = stored_tensors([path])
    check_form(stored, {"token_embedding": shape}, path)
    return load_tensors(stored)["token_embedding"]


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2) + "\n"
