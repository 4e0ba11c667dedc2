"""Our parameters as the tensors of Hugging Face's stock classes, and theirs as ours.

The stock classes have learned positions. A model with sinusoids is written with a table that holds them. It adds them
to sqrt(d_model) E, so that is the table of input embeddings, and the head is a tensor of its own.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tinygpt_jax.config import ModelConfig
from tinygpt_jax.exchange.tensors import Shape, parameter_shapes
from tinygpt_jax.functional import sinusoidal_encoding

Arrays = dict[str, np.ndarray]

HEAD = "lm_head.weight"
MASK = re.compile(r"h\.\d+\.attn\.(attention\.)?(masked_)?bias")  # no parameters: earlier versions saved them too
_PREFIX = "transformer."
_BLOCK = {
    "attention_norm.scale": "ln_1.weight",
    "attention_norm.bias": "ln_1.bias",
    "attention.qkv_weight": "attn.c_attn.weight",  # a Conv1D: (inputs, outputs), as ours
    "attention.qkv_bias": "attn.c_attn.bias",
    "attention.out_weight": "attn.c_proj.weight",
    "attention.out_bias": "attn.c_proj.bias",
    "feed_forward_norm.scale": "ln_2.weight",
    "feed_forward_norm.bias": "ln_2.bias",
    "feed_forward.weight_in": "mlp.c_fc.weight",
    "feed_forward.bias_in": "mlp.c_fc.bias",
    "feed_forward.weight_out": "mlp.c_proj.weight",
    "feed_forward.bias_out": "mlp.c_proj.bias",
}
_OUTSIDE = {
    "token_embedding": "wte.weight",
    "position_embedding": "wpe.weight",
    "final_norm.scale": "ln_f.weight",
    "final_norm.bias": "ln_f.bias",
    "head_weight": HEAD,
}
_NAMES = {
    "gpt2": _OUTSIDE,
    "openai-gpt": _OUTSIDE | {"token_embedding": "tokens_embed.weight", "position_embedding": "positions_embed.weight"},
}
_NAMES["gpt_neo"] = _OUTSIDE


def bare(name: str) -> str:
    """A tensor's name in the model without a head, which files have as well."""
    return name.removeprefix(_PREFIX)


def to_stock(kind: str, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The tensors of a stock model from parameters with learned positions, by their full names."""
    names = ((_stock_name(kind, name), array) for name, array in arrays.items())
    return {name if name == HEAD else _PREFIX + name: array for name, array in names}


def stock_shapes(kind: str, config: ModelConfig) -> dict[str, Shape]:
    """The shape of each tensor of a stock model, by its bare name."""
    shapes = {_stock_name(kind, name): shape for name, shape in parameter_shapes(config).items()}
    if kind != "gpt_neo":
        return shapes
    named: dict[str, Shape] = {}
    for name, shape in shapes.items():
        block, _, layer = name.partition(".attn.")
        if layer == "c_attn.weight":
            named |= {f"{block}.attn.attention.{x}_proj.weight": (shape[0], shape[0]) for x in "qkv"}
        elif layer.startswith("c_proj."):
            named[f"{block}.attn.attention.out_proj.{layer[7:]}"] = shape
        elif not layer:
            named[name] = shape[::-1] if ".mlp." in name else shape
    return named


def from_stock(kind: str, config: ModelConfig, tensors: Arrays) -> Arrays:
    """Our parameters, with learned positions, from a stock model's tensors by their bare names."""
    if kind == "gpt_neo":
        tensors = _as_gpt2(config, tensors)
    arrays = {name: tensors[_stock_name(kind, name)] for name in parameter_shapes(config)}
    return arrays | {"position_embedding": arrays["position_embedding"][: config.context_length]}


def without_sinusoids(config: ModelConfig, arrays: Arrays) -> tuple[ModelConfig, Arrays]:
    """The same model with its positions as a table, where they are sinusoids."""
    if config.positions == "learned":
        return config, arrays
    embedding = arrays["token_embedding"]
    tables = {
        "head_weight": embedding if config.tie_embeddings else arrays["head_weight"],
        "token_embedding": embedding * _scale(config),
        "position_embedding": _sinusoids(config),
    }
    return replace(config, positions="learned", tie_embeddings=False), arrays | tables


def with_sinusoids(
    config: ModelConfig, arrays: Arrays, embedding: np.ndarray | None = None
) -> tuple[ModelConfig, Arrays]:
    """The inverse of `without_sinusoids`, where the table of positions holds sinusoids; it is still among the arrays.

    Args:
        config: with learned positions.
        arrays: its parameters.
        embedding: what the table of tokens was before it was scaled, which rounding has hidden; if it fits.
    """
    if config.tie_embeddings or config.d_model % 2:
        return config, arrays
    # Another machine's sines may be others in the last bits of the angle, which grows with the position.
    allowed = 2e-6 * np.arange(1, config.context_length + 1)[:, None]
    if (np.abs(arrays["position_embedding"] - _sinusoids(config)) > allowed).any():
        return config, arrays
    scaled, head = arrays["token_embedding"], arrays["head_weight"]
    tied = np.array_equal(head * _scale(config), scaled)
    if tied:
        embedding = head
    elif embedding is None or not np.array_equal(embedding * _scale(config), scaled):
        embedding = scaled / _scale(config)
    return replace(config, positions="sinusoidal", tie_embeddings=tied), arrays | {"token_embedding": embedding}


def _stock_name(kind: str, name: str) -> str:
    if block := re.fullmatch(r"blocks_(\d+)\.(.+)", name):
        return f"h.{block[1]}.{_BLOCK[block[2]]}"
    return _NAMES[kind][name]


def _as_gpt2(config: ModelConfig, tensors: Arrays) -> Arrays:
    """GPT-Neo's tensors in GPT-2's form: weights (inputs, outputs), queries, keys and values in one, with biases of 0.

    GPT-Neo does not divide its scores by sqrt(head_dim), as we do: the queries make up for it.
    """
    scale = np.float32(config.head_dim**0.5)
    made = {name: x.T if ".mlp." in name and x.ndim == 2 else x for name, x in tensors.items() if ".attn." not in name}
    for layer in range(config.n_layers):
        attention, query, key, value = (
            f"h.{layer}.attn.",
            *(tensors[f"h.{layer}.attn.attention.{x}_proj.weight"].T for x in "qkv"),
        )
        made[f"{attention}c_attn.weight"] = np.concatenate([query * scale, key, value], axis=1)
        made[f"{attention}c_attn.bias"] = np.zeros(3 * config.d_model, np.float32)
        made[f"{attention}c_proj.weight"] = tensors[f"{attention}attention.out_proj.weight"].T
        made[f"{attention}c_proj.bias"] = tensors[f"{attention}attention.out_proj.bias"]
    return made


def _scale(config: ModelConfig) -> np.float32:
    return np.float32(config.d_model**0.5)


def _sinusoids(config: ModelConfig) -> np.ndarray:
    return np.asarray(sinusoidal_encoding(config.context_length, config.d_model))
