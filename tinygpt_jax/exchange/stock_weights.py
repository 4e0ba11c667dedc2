"""Our parameters as the tensors of Hugging Face's stock classes, and theirs as ours.

The stock classes have learned positions, or rotary ones, and embeddings as they are in their table. Ours are scaled,
but for learned positions: sqrt(d_model) E is the table that is written, and the head is a tensor of its own. Sinusoids
are written as a table of positions that holds them.
"""

import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tinygpt_jax.config import ModelConfig
from tinygpt_jax.exchange.other_forms import Arrays, from_neo, from_neox, neo_shapes, neox_shapes, to_neox
from tinygpt_jax.exchange.tensors import Shape, parameter_shapes
from tinygpt_jax.functional import sinusoidal_encoding

HEAD = "lm_head.weight"
# No parameters, but earlier versions of the library saved them too.
MASK = re.compile(r"h\.\d+\.attn\.(attention\.)?(masked_)?bias|layers\.\d+\.attention\.((masked_)?bias|rotary_emb\..*)")
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
_NAMES["gpt_neo"] = _NAMES["gpt_neox"] = _OUTSIDE  # after they are brought into GPT-2's form


def bare(name: str) -> str:
    """A tensor's name in the model without a head, which files have as well."""
    return HEAD if name == "embed_out.weight" else re.sub(r"^(transformer|gpt_neox)\.", "", name)


def to_stock(kind: str, config: ModelConfig, arrays: Mapping[str, np.ndarray]) -> Arrays:
    """The tensors of a stock model, by their full names, from parameters without sinusoids."""
    tensors, prefix = {_stock_name(kind, name): array for name, array in arrays.items()}, "transformer."
    if kind == "gpt_neox":
        tensors, prefix = to_neox(config, tensors), "gpt_neox."
    return {name if name == HEAD else prefix + name: array for name, array in tensors.items()}


def stock_shapes(kind: str, config: ModelConfig) -> dict[str, Shape]:
    """The shape of each tensor of a stock model, by its bare name."""
    shapes = {_stock_name(kind, name): shape for name, shape in parameter_shapes(config).items()}
    if kind == "gpt_neo":
        return neo_shapes(shapes)
    return neox_shapes(shapes) if kind == "gpt_neox" else shapes


def from_stock(kind: str, config: ModelConfig, tensors: Arrays) -> Arrays:
    """Our parameters, with no sinusoids, from a stock model's tensors by their bare names."""
    names = {name: _stock_name(kind, name) for name in parameter_shapes(config)}
    if kind == "gpt_neo":
        tensors = from_neo(config, tensors)
    elif kind == "gpt_neox":
        tensors = from_neox(config, names.values(), tensors)
    arrays = {name: tensors[theirs] for name, theirs in names.items()}
    if "position_embedding" in arrays:
        arrays["position_embedding"] = arrays["position_embedding"][: config.context_length]
    return arrays


def without_scale(config: ModelConfig, arrays: Arrays) -> tuple[ModelConfig, Arrays]:
    """The same model with embeddings that are not scaled, and with sinusoids as a table, where it has them.

    The configuration is that of the tables, for the stock class: a model with rotary positions would scale them again.
    """
    if config.positions == "learned":
        return config, arrays
    embedding = arrays["token_embedding"]
    tables = {
        "head_weight": embedding if config.tie_embeddings else arrays["head_weight"],
        "token_embedding": embedding * _scale(config),
    }
    if config.positions == "sinusoidal":
        config = replace(config, positions="learned")
        tables["position_embedding"] = _sinusoids(config)
    return replace(config, tie_embeddings=False), arrays | tables


def with_scale(config: ModelConfig, arrays: Arrays, embedding: np.ndarray | None = None) -> tuple[ModelConfig, Arrays]:
    """The inverse of `without_scale`, where positions are rotary or their table holds sinusoids, which is still among
    the arrays then.

    Args:
        config: of the stock class.
        arrays: its parameters.
        embedding: what the table of tokens was before it was scaled, which rounding has hidden; if it fits.
    """
    if config.positions == "learned":
        if config.tie_embeddings or config.d_model % 2:
            return config, arrays
        # Another machine's sines may be others in the last bits of the angle, which grows with the position.
        allowed = 2e-6 * np.arange(1, config.context_length + 1)[:, None]
        if (np.abs(arrays["position_embedding"] - _sinusoids(config)) > allowed).any():
            return config, arrays
        config = replace(config, positions="sinusoidal")
    scaled = arrays["token_embedding"]
    head = scaled if config.tie_embeddings else arrays["head_weight"]
    tied = np.array_equal(head * _scale(config), scaled)
    if tied:
        embedding = head
    elif embedding is None or not np.array_equal(embedding * _scale(config), scaled):
        embedding = scaled / _scale(config)
    return replace(config, tie_embeddings=tied), arrays | {"token_embedding": embedding, "head_weight": head}


def _stock_name(kind: str, name: str) -> str:
    if block := re.fullmatch(r"blocks_(\d+)\.(.+)", name):
        return f"h.{block[1]}.{_BLOCK[block[2]]}"
    return _NAMES[kind][name]


def _scale(config: ModelConfig) -> np.float32:
    return np.float32(config.d_model**0.5)


def _sinusoids(config: ModelConfig) -> np.ndarray:
    return np.asarray(sinusoidal_encoding(config.context_length, config.d_model))
