"""Equal steps of time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.spacings.spacing import SPACINGS, Spacing


@SPACINGS.register("t")
@dataclasses.dataclass(frozen=True)
class Time(Spacing):
    """Equal steps of t from the start on; the last one goes to a clean level."""

    def levels(self, schedule: Any, steps: int, start: float) -> jax.Array:
        return schedule.logsnr(jnp.linspace(start, 0, steps + 1, dtype=jnp.float32)[:-1])
