"""What a spacing of noise levels is, and the registry of spacings."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import Verbatim, require
from imagen_jax.methods import Method, option
from imagen_jax.registry import Registry

SPACINGS = Registry("spacing")


@dataclasses.dataclass(frozen=True)
class Spacing(Method, abc.ABC):
    """Where on a schedule the levels lie that a sampler visits."""

    def check_range(self, steps: int, start: float, names: tuple[str, str] = ("steps", "start")) -> None:
        """Raise a ValueError for a number of steps or a start that the spacing cannot have.

        Args:
          steps: T, from 1 to `checks.MAX_STEPS`.
          start: time to start from, in (0, 1].
          names: of both in messages.
        """

    def steps_from(self, steps: int, start: float) -> int:
        """Return how many of `steps` steps are left from time `start` on, in (0, 1]."""
        return max(1, round(steps * start))

    @abc.abstractmethod
    def levels(self, schedule: Any, steps: int, start: float) -> jax.Array:
        """Return logsnr [steps] of a `Schedule`, noisiest first, without the clean level at the end."""


@dataclasses.dataclass(frozen=True)
class SigmaSpacing(Spacing):
    """Levels between two bounds of sigma / alpha, inside the schedule's own range."""

    sigma_min: float = option(0.002, "[1e-06, 1e+06]")
    """lowest sigma / alpha."""
    sigma_max: float = option(80.0, "[1e-06, 1e+06]")
    """highest sigma / alpha."""

    def check(self) -> None:
        super().check()
        got = Verbatim(f"{self.sigma_min:g} and {self.sigma_max:g}")
        require(self.sigma_min < self.sigma_max, "sigma_min", "be positive and below sigma_max", got)

    @abc.abstractmethod
    def between(self, low: jax.Array, high: jax.Array, place: jax.Array) -> jax.Array:
        """Return the logsnr [T] at each `place` [T] in [0, 1] between the logsnr `low` and `high`."""

    def levels(self, schedule: Any, steps: int, start: float) -> jax.Array:
        first, last = schedule.logsnr(jnp.float32(start)), schedule.logsnr(jnp.float32(0))
        low = jnp.maximum(first, -2 * np.log(self.sigma_max))
        high = jnp.maximum(jnp.minimum(last, -2 * np.log(self.sigma_min)), low)
        levels = self.between(low, high, jnp.arange(steps, dtype=jnp.float32) / max(steps - 1, 1))
        # A schedule that reaches pure noise was trained to be started there.
        return levels.at[0].set(jnp.where(jnp.isneginf(first) | (start < 1), first, levels[0]))
