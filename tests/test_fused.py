import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tinygpt_jax import functional as F
from tinygpt_jax import model as model_room
from tinygpt_jax.config import ModelConfig
from tinygpt_jax.fused import causal_attention
from tinygpt_jax.model import GPT


@pytest.mark.parametrize("length", [1, 31, 32, 33, 100])
def test_blockwise_attention_is_attention(length):
    """Value and all three gradients, at lengths that fill blocks and that do not."""
    keys = jax.random.split(jax.random.key(length), 4)
    q, k, v, upstream = (jax.random.normal(key, (2, 3, length, 8)) for key in keys)
    plain, plain_gradients = jax.vjp(lambda q, k, v: F.attention(q, k, v, F.causal_mask(length)), q, k, v)
    blocks, block_gradients = jax.vjp(lambda q, k, v: causal_attention(q, k, v, 32), q, k, v)
    np.testing.assert_allclose(plain, blocks, atol=5e-6)
    for a, b in zip(plain_gradients(upstream), block_gradients(upstream), strict=True):
        np.testing.assert_allclose(a, b, atol=5e-5)


def test_blockwise_attention_takes_linear_memory():
    """Twice the length, about twice the temporary memory of value and gradient: not four times."""

    def bytes_needed(length):
        x = jax.ShapeDtypeStruct((1, 2, length, 16), jnp.float32)
        gradient = jax.grad(lambda q, k, v: jnp.sum(causal_attention(q, k, v)), argnums=(0, 1, 2))
        return jax.jit(gradient).lower(x, x, x).compile().memory_analysis().temp_size_in_bytes

    assert bytes_needed(4096) < 2.6 * bytes_needed(2048)


def test_a_long_context_gives_the_same_model(monkeypatch):
    config = ModelConfig(vocab_size=50, context_length=48, n_layers=2, n_heads=2, d_model=16, d_ff=32, dropout=0.0)
    tokens = jax.random.randint(jax.random.key(1), (2, 48), 0, 50)
    params = GPT(config).init(jax.random.key(0), tokens)
    short = GPT(config).apply(params, tokens)
    monkeypatch.setattr(model_room, "LONG_CONTEXT", 40)
    np.testing.assert_allclose(short, GPT(config).apply(params, tokens), atol=1e-5)
