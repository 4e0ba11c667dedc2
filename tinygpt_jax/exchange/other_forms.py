"""The tensors of GPT-Neo and GPT-NeoX in GPT-2's form, and GPT-2's in that of GPT-NeoX.

GPT-2 has weights (inputs, outputs), and queries, keys and values side by side. The others have weights (outputs,
inputs). Names are those in the model without a head.
"""

import re
from collections.abc import Iterable, Mapping

import numpy as np

from tinygpt_jax.config import ModelConfig
from tinygpt_jax.exchange.tensors import Shape

Arrays = dict[str, np.ndarray]

_NEOX = {
    "attn.c_attn": "attention.query_key_value",
    "attn.c_proj": "attention.dense",
    "mlp.c_fc": "mlp.dense_h_to_4h",
    "mlp.c_proj": "mlp.dense_4h_to_h",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "ln_f": "final_layer_norm",
    "wte": "embed_in",
}


def neo_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of a GPT-Neo's tensors from those of a GPT-2 of its size."""
    found: dict[str, Shape] = {}
    for name, shape in shapes.items():
        block, _, layer = name.partition(".attn.")
        if layer == "c_attn.weight":
            found |= {f"{block}.attn.attention.{x}_proj.weight": (shape[0], shape[0]) for x in "qkv"}
        elif layer.startswith("c_proj."):
            found[f"{block}.attn.attention.out_proj.{layer[7:]}"] = shape
        elif not layer:
            found[name] = shape[::-1] if ".mlp." in name else shape
    return found


def from_neo(config: ModelConfig, tensors: Arrays) -> Arrays:
    """A GPT-Neo's tensors in GPT-2's form.

    It has no biases there, and does not divide its scores by sqrt(head_dim): the queries make up for it.
    """
    scale = np.float32(config.head_dim**0.5)
    found = {name: x.T if ".mlp." in name and x.ndim == 2 else x for name, x in tensors.items() if ".attn." not in name}
    for layer in range(config.n_layers):
        attention = f"h.{layer}.attn."
        query, key, value = (tensors[f"{attention}attention.{x}_proj.weight"].T for x in "qkv")
        found[f"{attention}c_attn.weight"] = np.concatenate([query * scale, key, value], axis=1)
        found[f"{attention}c_attn.bias"] = np.zeros(3 * config.d_model, np.float32)
        found[f"{attention}c_proj.weight"] = tensors[f"{attention}attention.out_proj.weight"].T
        found[f"{attention}c_proj.bias"] = tensors[f"{attention}attention.out_proj.bias"]
    return found


def neox_shapes(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """The shapes of a GPT-NeoX's tensors from those of a GPT-2 of its size."""
    return {_neox_name(name): shape[::-1] if name.startswith("h.") else shape for name, shape in shapes.items()}


def to_neox(config: ModelConfig, tensors: Arrays) -> Arrays:
    """GPT-2's tensors in GPT-NeoX's form, which has query, key and value of one head after those of another."""
    found = {}
    for name, x in tensors.items():
        if ".c_attn." in name:
            heads = x.reshape(*x.shape[:-1], 3, config.n_heads, config.head_dim)
            x = np.swapaxes(heads, -3, -2).reshape(x.shape)
        found[_neox_name(name)] = x.T if name.startswith("h.") else x
    return found


def from_neox(config: ModelConfig, names: Iterable[str], tensors: Arrays) -> Arrays:
    """The inverse of `to_neox`, for these names of GPT-2's."""
    found = {}
    for name in names:
        x = tensors[_neox_name(name)]
        x = x.T if name.startswith("h.") else x
        if ".c_attn." in name:
            heads = x.reshape(*x.shape[:-1], config.n_heads, 3, config.head_dim)
            x = np.swapaxes(heads, -3, -2).reshape(x.shape)
        found[name] = x
    return found


def _neox_name(name: str) -> str:
    name = re.sub(r"^h\.", "layers.", name)
    for ours, theirs in _NEOX.items():
        name = name.replace(ours, theirs)
    return name
