"""Optimiser, learning-rate schedule and parameter averaging."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from imagen_jax.config import OptimConfig


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Linear warm-up, then constant, or cosine to zero at `decay_steps`."""
    warmup = optax.linear_schedule(0.0, config.learning_rate, max(1, config.warmup_steps))
    after = (
        optax.cosine_decay_schedule(config.learning_rate, config.decay_steps - config.warmup_steps)
        if config.decay_steps
        else optax.constant_schedule(config.learning_rate)
    )
    # Step 0 already moves: a first step at rate 0 would be wasted.
    return optax.join_schedules([lambda step: warmup(step + 1), after], [config.warmup_steps])


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Clipping by global norm (off at 0), then AdamW or Adafactor (paper section 4.1)."""
    rate = learning_rate(config)
    if config.optimizer == "adafactor":
        update = optax.adafactor(rate, weight_decay_rate=config.weight_decay or None)
    else:
        update = optax.adamw(
            rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=_is_kernel
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update) if config.clip_norm else update


def _is_kernel(params: Any) -> Any:
    """Weight decay is for matrices and convolutions, not for biases and norms."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def update_ema(ema_params: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """Exponential moving average in float32; the decay warms up as (1 + step) / (10 + step)."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda ema, new: ema + (1 - decay) * (new - ema), ema_params, params)
