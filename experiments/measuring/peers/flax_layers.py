"""The same model from Flax's own layers, with Optax, as a tutorial would write it."""

from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

from tinygpt_jax.config import Config, ModelConfig
from tinygpt_jax.devices import resolve_dtype
from tinygpt_jax.functional import sinusoidal_encoding
from tinygpt_jax.training.optimizer import make_optimizer


class Transformer(nn.Module):
    """Tokens `[b, t]` to logits `[b, t, v]`: post-norm, ReLU, sinusoids, a tied head."""

    config: ModelConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool) -> jax.Array:
        """With `train`, the random stream `dropout` is needed."""
        c = self.config
        dropout = partial(nn.Dropout(c.dropout), deterministic=not train)
        norm = partial(nn.LayerNorm, epsilon=1e-5, dtype=self.dtype)
        embedding = nn.Embed(c.vocab_size, c.d_model, embedding_init=nn.initializers.normal(0.02), dtype=self.dtype)
        positions = sinusoidal_encoding(tokens.shape[1], c.d_model).astype(self.dtype)
        x = dropout(embedding(tokens) * c.d_model**0.5 + positions[None])
        mask = nn.make_causal_mask(tokens)
        for _ in range(c.n_layers):
            update = nn.MultiHeadDotProductAttention(c.n_heads, dtype=self.dtype)(x, mask=mask)
            x = norm()(x + dropout(update))
            update = nn.Dense(c.d_model, dtype=self.dtype)(nn.relu(nn.Dense(c.d_ff, dtype=self.dtype)(x)))
            x = norm()(x + dropout(update))
        return embedding.attend(x)


class Trainer:
    """A jitted step with a donated state."""

    def __init__(self, config: Config) -> None:
        model, params = _initial(config, config.training.compute_dtype)
        optimizer = make_optimizer(config.optimizer, total_steps=1000)
        self._state = jax.jit(partial(TrainState.create, apply_fn=model.apply, tx=optimizer))(params=params)
        self._key = jax.random.key(config.training.seed)
        self.n_parameters = sum(x.size for x in jax.tree.leaves(params))

    def update(self, inputs: np.ndarray, targets: np.ndarray) -> jax.Array:
        self._key, key = jax.random.split(self._key)
        self._state, loss = _update(self._state, key, inputs, targets)
        return loss


@partial(jax.jit, donate_argnums=0)
def _update(state: TrainState, key: jax.Array, inputs: jax.Array, targets: jax.Array) -> tuple[TrainState, jax.Array]:
    def loss_of(params):
        logits = state.apply_fn({"params": params}, inputs, train=True, rngs={"dropout": key})
        losses = optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), targets)
        return jnp.mean(losses)

    loss, gradients = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=gradients), loss


class Writer:
    """Decoding as JAX tutorials do it: no cache, the whole padded window is read again for each token."""

    def __init__(self, config: Config) -> None:
        model, self.params = _initial(config, "auto")
        self._length = config.model.context_length

        @jax.jit
        def next_tokens(params, window, length):
            return jnp.argmax(model.apply({"params": params}, window, train=False)[:, length - 1], axis=-1)

        self._next_tokens = next_tokens

    def write(self, prompts: np.ndarray, length: int) -> np.ndarray:
        read = prompts.shape[1]
        window = np.zeros((len(prompts), self._length), np.int32)
        window[:, :read] = prompts
        for place in range(read, read + length):
            window[:, place] = self._next_tokens(self.params, window, place)
        return window[:, read : read + length]


def _initial(config: Config, dtype: Literal["auto", "float32", "bfloat16"]) -> tuple[Transformer, Any]:
    """The model and its parameters."""
    model = Transformer(config.model, resolve_dtype(dtype))
    tokens = jnp.zeros((1, config.model.context_length), jnp.int32)
    return model, jax.jit(partial(model.init, train=False))(jax.random.key(0), tokens)["params"]
