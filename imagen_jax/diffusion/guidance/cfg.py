"""Classifier-free guidance (Ho & Salimans 2022)."""

import dataclasses
from typing import Any

import jax

from imagen_jax.diffusion.guidance.rule import RULES, Rule


@RULES.register("cfg")
@dataclasses.dataclass(frozen=True)
class CFG(Rule):
    """x_null + w (x_cond - x_null): classifier-free guidance (paper equation 2)."""

    def combine(self, x_cond: jax.Array, x_null: jax.Array, w: jax.Array, state: Any) -> tuple[Any, Any]:
        return x_null + w * (x_cond - x_null), state
