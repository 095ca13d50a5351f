"""The times of discretely trained networks (Lin et al. 2023)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import require
from imagen_jax.diffusion.spacings.spacing import SPACINGS, Spacing

TIMES = 1000  # of the networks that the spacing is for


@SPACINGS.register("trailing")
@dataclasses.dataclass(frozen=True)
class Trailing(Spacing):
    """Equal steps of t on the 1000 times of a discretely trained network, rounded to them (Lin et al. 2023)."""

    def check_range(self, steps: int, start: float, names: tuple[str, str] = ("steps", "start")) -> None:
        why = "with spacing 'trailing', which stops at whole thousandths of the time"
        num = round(TIMES * start)  # times up to the start
        require(num > 0, names[1], f"be at least {1 / TIMES:g} {why}", start)
        require(steps <= num, names[0], f"be at most {num} {why}", steps)

    def levels(self, schedule: Any, steps: int, start: float) -> jax.Array:
        times = np.round(TIMES * start * np.arange(steps, -1, -1) / steps) / TIMES
        return schedule.logsnr(jnp.asarray(times[:-1], jnp.float32))
