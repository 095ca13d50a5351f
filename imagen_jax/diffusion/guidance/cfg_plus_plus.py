"""CFG++ (Chung et al. 2024)."""

import dataclasses
from typing import Any

import jax

from imagen_jax.diffusion.denoisers import Estimate
from imagen_jax.diffusion.guidance.rule import RULES, Rule


@RULES.register("cfg++")
@dataclasses.dataclass(frozen=True)
class CFGPlusPlus(Rule):
    """CFG++ (Chung et al. 2024): x_null + w (x_cond - x_null) with w in (0, 1], noised again along x_null's eps.

    For samplers that read `noise_x`. A constant w of 1 is no exception: both are evaluated.
    """

    is_off_at_one = False
    gives_noise_x = True
    scale_interval = "(0, 1]"

    def combine(self, x_cond: jax.Array, x_null: jax.Array, w: jax.Array, state: Any) -> tuple[Any, Any]:
        return Estimate(x_null + w * (x_cond - x_null), noise_x=x_null), state
