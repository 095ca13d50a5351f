"""Optimisers by name, and the learning-rate schedule.

What is registered is a function `(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation`:

    @OPTIMIZERS.register("mine")
    def mine(config, rate):
        return optax.lion(rate)
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
import optax.contrib

from imagen_jax.config import OPTIMIZERS, OptimConfig

# Coefficients of the quintic iteration, and five steps of it: Jordan et al. 2024, the Muon optimizer.
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
# Convolutions at both ends of a network, which are no hidden layers.
ENDS = frozenset({"conv_in", "stem", "conv_out"})


def packable(optimizer: Callable) -> Callable:
    """Mark an optimiser that treats each matrix of a stack, and each number of what is no matrix, by itself."""
    optimizer.is_packable = True
    return optimizer


def elementwise(optimizer: Callable) -> Callable:
    """Mark an optimiser that treats each number by itself, once it knows whether it is one of a matrix."""
    optimizer.is_elementwise = True
    return packable(optimizer)


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Return the schedule: linear warm-up, then constant, or along a cosine to zero at `decay_steps`."""
    warmup = optax.linear_schedule(0.0, config.learning_rate, max(1, config.warmup_steps))
    after = (
        optax.cosine_decay_schedule(config.learning_rate, config.decay_steps - config.warmup_steps)
        if config.decay_steps
        else optax.constant_schedule(config.learning_rate)
    )
    # Step 0 already moves: a first step at rate 0 would be wasted.
    return optax.join_schedules([lambda step: warmup(step + 1), after], [config.warmup_steps])


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Return the optimiser `config.optimizer`, after clipping by global norm (`config.clip_norm`, off at 0)."""
    update = OPTIMIZERS[config.optimizer](config, learning_rate(config))
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), update) if config.clip_norm else update


@OPTIMIZERS.register("adamw")
@elementwise
def adamw(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Return AdamW (Loshchilov & Hutter 2019); biases and norms have no weight decay."""
    is_kernel = lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params)
    return optax.adamw(rate, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=is_kernel)


@OPTIMIZERS.register("adafactor")
def adafactor(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Return Adafactor (Shazeer & Stern 2018), the optimiser of the base in the paper (section 4.1)."""
    return optax.adafactor(rate, weight_decay_rate=config.weight_decay or None)


@OPTIMIZERS.register("muon")
@packable
def muon(config: OptimConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Return Muon (Jordan et al. 2024).

    Its updates have the size of AdamW's, so that one learning rate suits both (Liu et al. 2025, arXiv 2502.16982,
    section 2.2). Biases, norms and the convolutions at both ends take Adam with Nesterov momentum and no weight decay.
    """
    return optax.contrib.muon(
        rate,
        ns_coeffs=(_NEWTON_SCHULZ,) * 5,  # as a table: a loop to compile instead of five copies
        eps=config.eps,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        muon_weight_dimension_numbers=_matrices,
        consistent_rms=0.2,
    )


def _matrices(params: Any) -> Any:
    """Return for each leaf the axes that Muon sees as a matrix, None for all but the kernels of hidden layers."""

    def axes(path: tuple, leaf: Any) -> optax.contrib.MuonDimensionNumbers | None:
        if jax.tree_util.GetAttrKey("stacks") in path:  # of `packing.Packed`
            return optax.contrib.MuonDimensionNumbers((1,), (2,))
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        if leaf.ndim < 2 or ENDS & set(names):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), (leaf.ndim - 1,))

    return jax.tree_util.tree_map_with_path(axes, params)
