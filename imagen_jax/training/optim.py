"""Optimiser, learning-rate schedule and parameter averaging."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from imagen_jax.config import OptimConfig

# Coefficients of the quintic iteration, and five steps of it: Jordan et al. 2024, the Muon optimizer.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


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
    """Clipping by global norm (`config.clip_norm`, off at 0), then AdamW, Adafactor (paper section 4.1) or Muon.

    Muon's updates have the size of AdamW's, so that one learning rate suits both (Liu et al. 2025,
    arXiv 2502.16982, section 2.2). Biases, norms and the convolutions at both ends take Adam with
    Nesterov momentum and no weight decay.
    """
    rate = learning_rate(config)
    if config.optimizer == "adafactor":
        update = optax.adafactor(rate, weight_decay_rate=config.weight_decay or None)
    elif config.optimizer == "muon":
        update = optax.contrib.muon(
            rate,
            ns_coeffs=(_NEWTON_SCHULZ,) * 5,  # as a table: a loop to compile instead of five copies
            eps=config.eps,
            weight_decay=config.weight_decay,
            adam_b1=config.b1,
            adam_b2=config.b2,
            muon_weight_dimension_numbers=_matrices,
            consistent_rms=0.2,
        )
    else:
        update = optax.adamw(
            rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=_is_kernel
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update) if config.clip_norm else update


def _matrices(params: Any) -> Any:
    """For each leaf the axes that Muon sees as a matrix, or None: not a hidden layer's kernel."""

    def axes(path: tuple, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        at_an_end = any(getattr(key, "key", None) in ("conv_in", "stem", "conv_out") for key in path)
        if leaf.ndim < 2 or at_an_end:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)


def _is_kernel(params: Any) -> Any:
    """Weight decay is for matrices and convolutions, not for biases and norms."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def update_ema(ema_params: Any, params: Any, step: jax.Array, decay: float) -> Any:
    """Exponential moving average in float32; the decay warms up as (1 + step) / (10 + step)."""
    decay = jnp.minimum(decay, (1 + step) / (10 + step))
    return jax.tree.map(lambda ema, new: ema + (1 - decay) * (new - ema), ema_params, params)
