"""Adaptive projected guidance (Sadat et al. 2024)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.guidance.rule import RULES, Rule, mean
from imagen_jax.methods import option


@RULES.register("apg")
@dataclasses.dataclass(frozen=True)
class APG(Rule):
    """Adaptive projected guidance (Sadat et al. 2024): x_cond + (w - 1) (d_orthogonal + parallel d_parallel).

    d = x_cond - x_null is split along x_cond and across it; what lies along x_cond mostly adds saturation.
    """

    parallel: float = option(0.0, "[-1000, 1000]", flat="apg_parallel")
    """share of the part along the conditional estimate; 1 is linear guidance."""
    norm: float | None = option(None, "(0, 1e+06]", flat="apg_norm")
    """largest root-mean-square of the difference over an image's values, which means the same at every size."""
    momentum: float = option(0.0, "(-1, 1)", flat="apg_momentum")
    """weight of the sum of earlier differences; negative steers away from them, -0.5 for example."""

    @property
    def has_state(self) -> bool:
        return self.momentum != 0

    def init(self, z_1: jax.Array) -> Any:
        return jnp.zeros(z_1.shape, jnp.float32) if self.has_state else ()

    def combine(self, x_cond: jax.Array, x_null: jax.Array, w: jax.Array, state: Any) -> tuple[Any, Any]:
        d = x_cond - x_null
        if self.has_state:
            d = state = d + self.momentum * state
        if self.norm is not None:
            d = d * jnp.minimum(1.0, self.norm / jnp.maximum(jnp.sqrt(mean(d * d)), 1e-12))
        along = mean(d * x_cond) / jnp.maximum(mean(x_cond * x_cond), 1e-12) * x_cond
        return x_cond + (w - 1) * (d - along + self.parallel * along), state
