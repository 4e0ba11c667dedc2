"""AdamW with clipping, weight decay on matrices only, and the learning-rate schedule."""

from typing import Any

import jax
import optax

from tinygpt_jax.config import OptimizerConfig


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Update number (from 0) -> learning rate: a linear warmup, then constant or a half cosine to the last update."""
    peak, warmup = config.learning_rate, config.warmup_steps
    if config.schedule == "constant":
        after = optax.constant_schedule(peak)
    else:
        after = optax.cosine_decay_schedule(peak, max(1, total_steps - warmup), alpha=config.final_fraction)
    if warmup == 0:
        return after
    # The first update has rate peak / warmup, not 0.
    rising = optax.linear_schedule(peak / warmup, peak, max(1, warmup - 1))
    return optax.join_schedules([rising, after], [warmup])


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
