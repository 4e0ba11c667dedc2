"""AdamW with clipping, weight decay on matrices only, and the learning-rate schedule."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tinygpt_jax.config import OptimizerConfig


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
    """Scale the gradients to the clip norm, then AdamW (Loshchilov & Hutter 2019)."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate_schedule(config, total_steps),
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )


def decay_mask(params: Any) -> Any:
    """True for the matrices of `params`; False for biases and LayerNorm's vectors, which decay would only bend."""
    return jax.tree.map(lambda x: x.ndim >= 2, params)
