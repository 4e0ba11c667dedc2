"""The residual stream and the weights of attention against the reference in NumPy, layer by layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import reference
from tinygpt_jax import functional as F
from tinygpt_jax import fused
from tinygpt_jax.activations import activations
from tinygpt_jax.config import ModelConfig
from tinygpt_jax.model import GPT

SHAPE = {"vocab_size": 40, "context_length": 12, "n_layers": 2, "n_heads": 2, "d_model": 8, "d_ff": 16, "dropout": 0.0}
TOKENS = jnp.array(np.random.default_rng(2).integers(0, 40, (2, 12)))


def large_parameters(config):
    """All random, and so large that no weight of attention is near another."""
    params = jax.eval_shape(GPT(config).init, jax.random.key(0), TOKENS)["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.array(rng.normal(0, 0.5, x.shape), jnp.float32), params)


@pytest.mark.parametrize("positions", ["sinusoidal", "learned", "rotary"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_activations_are_those_of_the_reference(norm, positions):
    config = ModelConfig(**SHAPE, norm=norm, positions=positions)
    params = large_parameters(config)
    seen = jax.jit(lambda p, t: activations(GPT(config, arithmetic=fused), p, t))(params, TOKENS)
    params = jax.tree.map(lambda x: np.array(x, np.float64), params)
    for row, tokens in enumerate(TOKENS):
        x = reference.embed(params["token_embedding"], tokens)
        x = x + params["position_embedding"] if positions == "learned" else x * 8**0.5
        if positions == "sinusoidal":
            x = x + reference.sinusoidal_encoding(12, 8)
        np.testing.assert_allclose(seen.residual[0, row], x, rtol=1e-4, atol=1e-5)
        for layer in range(2):
            block = params[f"blocks_{layer}"]
            attended = reference.layer_norm(x, **block["attention_norm"]) if norm == "pre" else x
            weights = attention_weights(block["attention"], attended, turned=positions == "rotary")
            np.testing.assert_allclose(seen.attention[layer, row], weights, rtol=1e-3, atol=1e-5)
            step = reference.pre_norm_block if norm == "pre" else reference.post_norm_block
            x = step(block, x, 2, config.activation, positions == "rotary")
            np.testing.assert_allclose(seen.residual[layer + 1, row], x, rtol=1e-3, atol=1e-4)
        variant = {"n_layers": 2, "n_heads": 2, "norm": norm, "activation": "relu", "positions": positions}
        np.testing.assert_allclose(seen.logits[row], reference.gpt(params, tokens, **variant), rtol=1e-3, atol=1e-3)


def attention_weights(params, x, turned):
    """[heads, queries, keys]: the softmax of each query's scores over the keys up to itself."""
    query, key, _ = np.split(reference.linear(x, params["qkv_weight"], params["qkv_bias"]), 3, axis=-1)
    weights = np.zeros((2, len(x), len(x)))
    for head in range(2):
        mine = slice(4 * head, 4 * head + 4)
        q, k = (reference.rotary(x[:, mine]) if turned else x[:, mine] for x in (query, key))
        for i in range(len(q)):
            weights[head, i, : i + 1] = reference.softmax(k[: i + 1] @ q[i] / 2)
    return weights


@pytest.mark.parametrize("arithmetic", [F, fused])
def test_activations_of_a_long_context(arithmetic):
    """Where attention is computed in blocks, there are no weights to look at on the way; here there are."""
    config = ModelConfig(**{**SHAPE, "context_length": 530})
    model, params = GPT(config, arithmetic=arithmetic), large_parameters(config)
    tokens = jnp.array(np.random.default_rng(0).integers(0, 40, (1, 530)))
    seen = jax.jit(activations, static_argnums=0)(model, params, tokens)
    np.testing.assert_allclose(seen.attention.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(seen.logits, jax.jit(model.apply)({"params": params}, tokens))


def test_activations_are_differentiable():
    config = ModelConfig(**SHAPE)
    model = GPT(config, remat=True)
    gradient = jax.jit(jax.grad(lambda p: activations(model, p, TOKENS).attention[1, 0, 0, 3, 1]))(
        large_parameters(config)
    )
    assert np.abs(gradient["blocks_0"]["feed_forward"]["weight_in"]).max() > 0
    assert np.abs(gradient["blocks_1"]["feed_forward"]["weight_in"]).max() == 0  # comes later
