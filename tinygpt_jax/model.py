"""The GPT as Flax modules: they own the parameters and call `functional`. The mathematics is not here.

Initialisation: weight matrices are normal with variance 1 / inputs, so that what comes out is as large as what goes in
at any width (LeCun et al. 1998, 4.6); the two that write to the residual stream of a block are divided by
sqrt(2 n_layers), and the token table has standard deviation 0.02 and learned positions 0.01, as in GPT-2 (Radford et
al. 2019, 2.3, and its released code). Biases are 0, LayerNorm scales 1.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.initializers import normal, ones, zeros
from jaxtyping import Array, Bool, Float, Int, Key

from tinygpt_jax import functional as F
from tinygpt_jax.config import ModelConfig
from tinygpt_jax.fused import causal_attention, head_cross_entropy

# From this length on, attention takes memory in proportion to the length and not to its square.
LONG_CONTEXT = 512

# Keys and values of one layer, each [batch, heads, capacity, head_dim].
LayerCache = tuple[Float[Array, "b h c e"], Float[Array, "b h c e"]]


class GPT(nn.Module):
    """A decoder-only transformer.

    Attributes:
        config: shapes and variants.
        compute_dtype: dtype of activations and products; parameters and logits are float32.
        remat: recompute each block in the backward pass instead of keeping its activations.
    """

    config: ModelConfig
    compute_dtype: Any = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        """Declare the parameters; `ModelConfig` says which there are."""
        c = self.config
        self.token_embedding = self.param("token_embedding", normal(0.02), (c.vocab_size, c.d_model))
        if c.positions == "learned":
            self.position_embedding = self.param("position_embedding", normal(0.01), (c.context_length, c.d_model))
        block = nn.remat(Block) if self.remat else Block
        self.blocks = [block(c) for _ in range(c.n_layers)]
        if c.norm == "pre":
            self.final_norm = LayerNorm(c.d_model)
        if not c.tie_embeddings:
            self.head_weight = self.param("head_weight", normal(0.02), (c.vocab_size, c.d_model))

    def __call__(self, tokens: Int[Array, "b t"], dropout_key: Key[Array, ""] | None = None) -> Float[Array, "b t v"]:
        """Float32 logits for the token after each position. Without a key there is no dropout."""
        return self.logits(self.hidden(tokens, dropout_key))

    def loss(
        self,
        tokens: Int[Array, "b t"],
        targets: Int[Array, "b t"],
        mask: Bool[Array, "b t"],
        dropout_key: Key[Array, ""] | None = None,
        *,
        chunks: int = 1,
        vocab_multiple: int = 1,
    ) -> Float[Array, ""]:
        """Mean cross-entropy in nats, by `fused.head_cross_entropy`, which the last two arguments go to."""
        hidden = self.hidden(tokens, dropout_key)
        return head_cross_entropy(hidden, self._head(), targets, mask, chunks=chunks, vocab_multiple=vocab_multiple)

    def hidden(self, tokens: Int[Array, "b t"], dropout_key: Key[Array, ""] | None = None) -> Float[Array, "b t d"]:
        """The last hidden states, in the compute dtype."""
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise ValueError(f"{length} tokens do not fit the context of {self.config.context_length}")
        keys = [None] * (len(self.blocks) + 1)
        if dropout_key is not None:
            keys = list(jax.random.split(dropout_key, len(keys)))
        x = self._embed(tokens, jnp.arange(length)[None, :])
        x = _dropout(keys[0], x, self.config.dropout)
        mask = F.causal_mask(length) if length < LONG_CONTEXT else None
        for block, key in zip(self.blocks, keys[1:], strict=True):
            x, _ = block(x, mask, key)
        return self.final_norm(x) if self.config.norm == "pre" else x

    def decode(
        self,
        tokens: Int[Array, "b t"],
        cache: tuple[LayerCache, ...],
        column: Int[Array, ""],
        start: Int[Array, " b"],
    ) -> tuple[Float[Array, "b v"], tuple[LayerCache, ...]]:
        """Read `tokens` into the cache at columns `column ...`, and return the logits after the last of them.

        Rows of different lengths are aligned at their ends: row i's text begins at column `start[i]`, and what
        stands before it is never looked at.
        """
        capacity = cache[0][0].shape[2]
        columns = column + jnp.arange(tokens.shape[1])[None, :]
        x = self._embed(tokens, jnp.maximum(columns - start[:, None], 0))
        key_columns = jnp.arange(capacity)[None, None, :]
        mask = (key_columns <= columns[:, :, None]) & (key_columns >= start[:, None, None])
        layers = []
        for block, layer in zip(self.blocks, cache, strict=True):
            x, layer = block(x, mask[:, None], None, layer, column)
            layers.append(layer)
        x = x[:, -1:]
        if self.config.norm == "pre":
            x = self.final_norm(x)
        return self.logits(x)[:, 0], tuple(layers)

    def _embed(self, tokens: Int[Array, "b t"], positions: Int[Array, "#b t"]) -> Float[Array, "b t d"]:
        c = self.config
        x = F.embed(self.token_embedding, tokens)
        if c.positions == "learned":
            x = x + F.embed(self.position_embedding, positions)
        else:
            # sqrt(d_model) lifts embeddings of 0.02 to the size of the sinusoids (Vaswani et al. 2017, 3.4).
            x = x * c.d_model**0.5 + F.sinusoidal_encoding(c.context_length, c.d_model)[positions]
        return x.astype(self.compute_dtype)

    def _head(self) -> Float[Array, "v d"]:
        return self.token_embedding if self.config.tie_embeddings else self.head_weight

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Float32 logits from hidden states."""
        head = self._head().astype(hidden.dtype)
        return jnp.einsum("btd,vd->btv", hidden, head, preferred_element_type=jnp.float32)


class Block(nn.Module):
    """Attention and feed-forward, each with dropout, a residual connection and a LayerNorm after or before it."""

    config: ModelConfig

    def setup(self) -> None:
        """Declare the sub-layers."""
        self.attention = SelfAttention(self.config)
        self.attention_norm = LayerNorm(self.config.d_model)
        self.feed_forward = FeedForward(self.config)
        self.feed_forward_norm = LayerNorm(self.config.d_model)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        mask: Bool[Array, "..."] | None,
        dropout_key: Key[Array, ""] | None = None,
        cache: LayerCache | None = None,
        column: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        """One layer. With a cache, keys and values of `x` are written to it at `column`, and all of it is read."""
        rate = self.config.dropout
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        if self.config.norm == "pre":
            update, cache = self.attention(self.attention_norm(x), mask, cache, column)
            x = x + _dropout(keys[0], update, rate)
            update = self.feed_forward(self.feed_forward_norm(x))
            x = x + _dropout(keys[1], update, rate)
        else:
            update, cache = self.attention(x, mask, cache, column)
            x = self.attention_norm(x + _dropout(keys[0], update, rate))
            update = self.feed_forward(x)
            x = self.feed_forward_norm(x + _dropout(keys[1], update, rate))
        return x, cache


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself (Vaswani et al. 2017, 3.2.2)."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        mask: Bool[Array, "..."] | None,
        cache: LayerCache | None = None,
        column: Int[Array, ""] | None = None,
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        """Mix positions where `mask` allows it, or, without one, causally; see `Block` for the cache."""
        d, n_heads = self.config.d_model, self.config.n_heads
        # One product for queries, keys and values keeps the device busier than three.
        qkv_weight = self.param("qkv_weight", normal(d**-0.5), (d, 3 * d))
        qkv_bias = self.param("qkv_bias", zeros, (3 * d,))
        out_weight = self.param("out_weight", _residual_init(d, self.config), (d, d))
        out_bias = self.param("out_bias", zeros, (d,))

        query, key, value = (
            F.split_heads(part, n_heads) for part in jnp.split(F.linear(x, qkv_weight, qkv_bias), 3, axis=-1)
        )
        if cache is not None:
            cache = (_write(cache[0], key, column), _write(cache[1], value, column))
            key, value = cache
        mixed = causal_attention(query, key, value) if mask is None else F.attention(query, key, value, mask)
        mixed = F.merge_heads(mixed)  # pyright: ignore[reportArgumentType]
        return F.linear(mixed, out_weight, out_bias), cache


class FeedForward(nn.Module):
    """The position-wise network of a block."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Apply `functional.feed_forward`."""
        d, d_ff = self.config.d_model, self.config.d_ff
        return F.feed_forward(
            x,
            self.param("weight_in", normal(d**-0.5), (d, d_ff)),
            self.param("bias_in", zeros, (d_ff,)),
            self.param("weight_out", _residual_init(d_ff, self.config), (d_ff, d)),
            self.param("bias_out", zeros, (d,)),
            self.config.activation,
        )


class LayerNorm(nn.Module):
    """Normalise features, with a learned scale and bias."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Apply `functional.layer_norm`."""
        scale = self.param("scale", ones, (self.features,))
        bias = self.param("bias", zeros, (self.features,))
        return F.layer_norm(x, scale, bias)


def empty_cache(config: ModelConfig, batch: int, capacity: int, dtype: Any) -> tuple[LayerCache, ...]:
    """A cache of zeros for `capacity` positions, one pair of keys and values for each layer."""
    shape = (batch, config.n_heads, capacity, config.head_dim)
    return tuple((jnp.zeros(shape, dtype), jnp.zeros(shape, dtype)) for _ in range(config.n_layers))


def abstract_params(config: ModelConfig) -> Any:
    """The parameters' shapes and dtypes, without their values."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(lambda: GPT(config).init(jax.random.key(0), tokens)["params"])


def _write(cache, new, column):
    return jax.lax.dynamic_update_slice_in_dim(cache, new.astype(cache.dtype), column, axis=2)


def _dropout(key, x, rate):
    return x if key is None or rate == 0 else F.dropout(key, x, rate)


def _residual_init(inputs: int, config: ModelConfig):
    return normal((inputs * 2 * config.n_layers) ** -0.5)
