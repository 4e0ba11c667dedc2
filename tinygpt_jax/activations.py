"""What a model computes on its way from tokens to logits: the residual stream, and who looks at whom.

For who wants to see inside. Training and decoding know nothing of it.
"""

from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from tinygpt_jax import functional
from tinygpt_jax.model import GPT, Block


class Activations(NamedTuple):
    """What `activations` returns. Layer 0 of the residual stream is the embedding, layer l what block l gives."""

    logits: Float[Array, "b t v"]
    residual: Float[Array, "layers b t d"]  # n_layers + 1 of them, in the compute dtype
    attention: Float[Array, "blocks b h q k"]  # weights in float32: each query's add up to 1, over keys up to itself


def activations(model: GPT, params: Any, tokens: Int[Array, "b t"]) -> Activations:
    """The model's logits without dropout, and what came before them. Pure: it can be jitted, and differentiated.

    Raises:
        ValueError: the tokens do not fit the context.
    """
    F, weights = model.arithmetic, []

    def self_attention(qkv, n_heads):
        query, key, _ = (F.split_heads(part, n_heads) for part in jnp.split(qkv, 3, axis=-1))
        # Attention mixes values by its weights; unit vectors, mixed, are the weights, whatever the function.
        unit_vectors = jnp.broadcast_to(jnp.eye(key.shape[-2]), (*key.shape[:-1], key.shape[-2]))
        weights.append(F.attention(query, key, unit_vectors, functional.causal_mask(query.shape[-2])))
        return F.self_attention(qkv, n_heads)

    watched = SimpleNamespace(**{**vars(F), "self_attention": self_attention})
    logits, state = model.clone(arithmetic=watched, remat=False).apply(
        {"params": params},
        tokens,
        capture_intermediates=lambda module, method: isinstance(module, Block) or method == "_embed",
        mutable=["intermediates"],
    )
    seen: Any = state["intermediates"]
    blocks = [seen[f"blocks_{layer}"]["__call__"][0][0] for layer in range(model.config.n_layers)]
    return Activations(logits, jnp.stack([seen["_embed"][0], *blocks]), jnp.stack(weights))
