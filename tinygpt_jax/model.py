"""The GPT as Flax modules: they own the parameters and call pure functions. The mathematics is not here.

The functions are those of `functional`, the plain formulas, unless a module is given others of the same names:
`fused`, which are arranged for a machine and have no forward-mode derivative (`jax.jvp`, `jax.hessian`). In the
methods, `F` is that module.

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

from tinygpt_jax import functional
from tinygpt_jax.config import ModelConfig
from tinygpt_jax.rows import stay_with_rows

# Keys and values of one layer, each [batch, heads, capacity, head_dim].
LayerCache = tuple[Float[Array, "b h c e"], Float[Array, "b h c e"]]


class GPT(nn.Module):
    """A decoder-only transformer.

    Attributes:
        config: shapes and variants.
        compute_dtype: dtype of activations and products; parameters and logits are float32.
        remat: recompute each block in the backward pass instead of keeping its activations.
        arithmetic: the module of the functions, `functional` or `fused`.
    """

    config: ModelConfig
    compute_dtype: Any = jnp.float32
    remat: bool = False
    arithmetic: Any = functional

    def setup(self) -> None:
        """Declare the parameters; `ModelConfig` says which there are."""
        c = self.config
        self.token_embedding = self.param("token_embedding", normal(0.02), (c.vocab_size, c.d_model))
        if c.positions == "learned":
            self.position_embedding = self.param("position_embedding", normal(0.01), (c.context_length, c.d_model))
        block = nn.remat(Block) if self.remat else Block
        self.blocks = [block(c, self.arithmetic) for _ in range(c.n_layers)]
        if c.norm == "pre":
            self.final_norm = LayerNorm(c, self.arithmetic)
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
        **arrangement: int,
    ) -> Float[Array, ""]:
        """Mean cross-entropy in nats. `arrangement` is for `fused.head_cross_entropy`: `chunks`, `vocab_multiple`."""
        hidden = self.hidden(tokens, dropout_key)
        return self.arithmetic.head_cross_entropy(hidden, self._head(), targets, mask, **arrangement)

    def hidden(self, tokens: Int[Array, "b t"], dropout_key: Key[Array, ""] | None = None) -> Float[Array, "b t d"]:
        """The last hidden states, in the compute dtype."""
        length = tokens.shape[1]
        if length > self.config.context_length:
            raise ValueError(f"{length} tokens do not fit the context of {self.config.context_length}")
        keys = [None] * (len(self.blocks) + 1)
        if dropout_key is not None:
            keys = list(jax.random.split(dropout_key, len(keys)))
        positions = jnp.arange(length)[None, :]
        x = self._embed(tokens, positions)
        x = _dropout(self.arithmetic, keys[0], x, self.config.dropout)
        for block, key in zip(self.blocks, keys[1:], strict=True):
            x, _ = block(stay_with_rows(x), positions, key)
        return self.final_norm(x) if self.config.norm == "pre" else x

    def decode(
        self,
        tokens: Int[Array, "b t"],
        cache: tuple[LayerCache, ...],
        column: Int[Array, ""],
        start: Int[Array, " b"],
        last: Int[Array, ""] | int = -1,
    ) -> tuple[Float[Array, "b v"], tuple[LayerCache, ...]]:
        """Read `tokens` into the cache at columns `column ...`, and return the logits after the `last` of them.

        Rows of different lengths are aligned at their ends: row i's text begins at column `start[i]`, and what
        stands before it is never looked at.
        """
        capacity = cache[0][0].shape[2]
        columns = column + jnp.arange(tokens.shape[1])[None, :]
        positions = jnp.maximum(columns - start[:, None], 0)
        x = self._embed(tokens, positions)
        key_columns = jnp.arange(capacity)[None, None, :]
        mask = (key_columns <= columns[:, :, None]) & (key_columns >= start[:, None, None])
        layers = []
        for block, layer in zip(self.blocks, cache, strict=True):
            x, layer = block(x, positions, cache=layer, column=column, mask=mask[:, None])
            layers.append(layer)
        x = jax.lax.dynamic_slice_in_dim(x, last, 1, axis=1)
        if self.config.norm == "pre":
            x = self.final_norm(x)
        return self.logits(x)[:, 0], tuple(layers)

    def _embed(self, tokens: Int[Array, "b t"], positions: Int[Array, "#b t"]) -> Float[Array, "b t d"]:
        c, F = self.config, self.arithmetic
        x = F.embed(self.token_embedding, tokens)
        if c.positions == "learned":
            x = x + F.embed(self.position_embedding, positions)
        else:
            # sqrt(d_model) lifts embeddings of 0.02 to the size of the sinusoids (Vaswani et al. 2017, 3.4), and of
            # what the blocks add, which would bury the tokens.
            x = x * c.d_model**0.5
            if c.positions == "sinusoidal":
                x = x + F.sinusoidal_encoding(c.context_length, c.d_model)[positions]
        return x.astype(self.compute_dtype)

    def _head(self) -> Float[Array, "v d"]:
        return self.token_embedding if self.config.tie_embeddings else self.head_weight

    def logits(self, hidden: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """Float32 logits from hidden states."""
        return self.arithmetic.token_logits(hidden, self._head())


class _Part(nn.Module):
    """What every part of the model is given."""

    config: ModelConfig
    arithmetic: Any = functional


class Block(_Part):
    """Attention and feed-forward, each with dropout, a residual connection and a LayerNorm after or before it."""

    def setup(self) -> None:
        """Declare the sub-layers."""
        given = (self.config, self.arithmetic)
        self.attention, self.attention_norm = SelfAttention(*given), LayerNorm(*given)
        self.feed_forward, self.feed_forward_norm = FeedForward(*given), LayerNorm(*given)

    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "#b t"],
        dropout_key: Key[Array, ""] | None = None,
        cache: LayerCache | None = None,
        column: Int[Array, ""] | None = None,
        mask: Bool[Array, "b 1 t c"] | None = None,
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        """One layer. With a cache, keys and values of `x` go into it at `column`, and it is read under `mask`."""
        F, rate = self.arithmetic, self.config.dropout
        keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
        if self.config.norm == "pre":
            update, cache = self.attention(self.attention_norm(x), positions, cache, column, mask)
            x = x + _dropout(F, keys[0], update, rate)
            update = self.feed_forward(self.feed_forward_norm(x))
            x = x + _dropout(F, keys[1], update, rate)
        else:
            update, cache = self.attention(x, positions, cache, column, mask)
            x = self.attention_norm(x + _dropout(F, keys[0], update, rate))
            update = self.feed_forward(x)
            x = self.feed_forward_norm(x + _dropout(F, keys[1], update, rate))
        return x, cache


class SelfAttention(_Part):
    """Causal multi-head attention of a sequence to itself (Vaswani et al. 2017, 3.2.2 and 3.2.3)."""

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t d"],
        positions: Int[Array, "#b t"],
        cache: LayerCache | None = None,
        column: Int[Array, ""] | None = None,
        mask: Bool[Array, "b 1 t c"] | None = None,
    ) -> tuple[Float[Array, "b t d"], LayerCache | None]:
        """Mix each position with those before it; see `Block` for the cache."""
        F, d, n_heads = self.arithmetic, self.config.d_model, self.config.n_heads
        qkv_weight = self.param("qkv_weight", normal(d**-0.5), (d, 3 * d))
        qkv_bias = self.param("qkv_bias", zeros, (3 * d,))
        out_weight = self.param("out_weight", _residual_init(d, self.config), (d, d))
        out_bias = self.param("out_bias", zeros, (d,))
        # One product for queries, keys and values keeps the device busier than three.
        qkv = F.linear(x, qkv_weight, qkv_bias)
        if self.config.positions == "rotary":
            qkv = F.rotary(qkv, n_heads, positions)
        if cache is None:
            mixed = F.self_attention(qkv, n_heads)
        else:
            query, key, value = (F.split_heads(part, n_heads) for part in jnp.split(qkv, 3, axis=-1))
            cache = (_write(cache[0], key, column), _write(cache[1], value, column))
            mixed = F.merge_heads(F.attention(query, *cache, mask))
        return F.linear(mixed, out_weight, out_bias), cache


class FeedForward(_Part):
    """The position-wise network of a block."""

    @nn.compact
    def __call__(self, x: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Apply `feed_forward`."""
        d, d_ff = self.config.d_model, self.config.d_ff
        return self.arithmetic.feed_forward(
            x,
            self.param("weight_in", normal(d**-0.5), (d, d_ff)),
            self.param("bias_in", zeros, (d_ff,)),
            self.param("weight_out", _residual_init(d_ff, self.config), (d_ff, d)),
            self.param("bias_out", zeros, (d,)),
            self.config.activation,
        )


class LayerNorm(_Part):
    """Normalise features, with a learned scale and bias."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch d"]) -> Float[Array, "*batch d"]:
        """Apply `layer_norm`."""
        scale = self.param("scale", ones, (self.config.d_model,))
        bias = self.param("bias", zeros, (self.config.d_model,))
        return self.arithmetic.layer_norm(x, scale, bias)


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


def _dropout(arithmetic, key, x, rate):
    return x if key is None or rate == 0 else arithmetic.dropout(key, x, rate)


def _residual_init(inputs: int, config: ModelConfig):
    return normal((inputs * 2 * config.n_layers) ** -0.5)
