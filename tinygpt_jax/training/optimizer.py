"""AdamW with clipping, weight decay on matrices only, and the learning-rate schedule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tinygpt_jax.config import OptimizerConfig
from tinygpt_jax.training.muon import is_muons, scale_by_muon


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> Callable[[Any], Any]:
    """Update number (from 0) -> learning rate: a linear warmup, then constant or a half cosine to the last update.

    Of an array of JAX the rate is one too; of a Python int it is a number that no device has computed.
    """
    warmup, last = config.warmup_steps, config.final_fraction if config.schedule == "cosine" else 1.0

    def learning_rate(step: Any) -> Any:
        xp = jnp if isinstance(step, jax.Array) else np
        # The first update has rate learning_rate / warmup, not 0.
        rising = xp.minimum((step + 1) / max(1, warmup), 1.0)
        done = xp.clip((step - warmup) / max(1, total_steps - warmup), 0.0, 1.0)
        falling = last + (1 - last) * (1 + xp.cos(np.pi * done)) / 2
        return config.learning_rate * rising * falling

    return learning_rate


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """Scale the gradients to the clip norm, then AdamW (Loshchilov & Hutter 2019); Muon for matrices that are its."""
    rate = learning_rate_schedule(config, total_steps)
    adamw = optax.adamw(
        rate,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    if config.matrices == "muon":
        muon = optax.chain(
            scale_by_muon(config.muon_momentum),
            optax.add_decayed_weights(config.weight_decay / config.muon_rate),  # as much as AdamW's, at its rate
            optax.scale_by_learning_rate(lambda step: config.muon_rate * rate(step)),
        )
        adamw = optax.partition({"adamw": adamw, "muon": muon}, _by_whom)
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw)


def _by_whom(params: Any) -> Any:
    return jax.tree.map_with_path(lambda path, x: "muon" if is_muons(path, x) else "adamw", params)


def decay_mask(params: Any) -> Any:
    """True for the matrices of `params`; False for biases and LayerNorm's vectors, which decay would only bend."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)
