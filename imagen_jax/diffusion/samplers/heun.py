"""EDM's sampler (Karras et al. 2022)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.checks import Verbatim, require
from imagen_jax.diffusion.samplers.sampler import SAMPLERS, Sampler, Step
from imagen_jax.diffusion.schedules import alpha_sigma
from imagen_jax.methods import option

LONGEST_STEP = 4.0  # in h: S falls 55-fold


@SAMPLERS.register("heun")
@dataclasses.dataclass(frozen=True)
class Heun(Sampler):
    """EDM's sampler (Karras et al. 2022, algorithm 2): the trapezoidal rule in S = sigma / alpha.

    In these variables the correction of the Euler (ddim) step is (alpha_s / 2) expm1(h) (x_hat_s - x_hat_t).
    The last step, to no noise, is an Euler step; so are those longer than h = LONGEST_STEP, whose trapezoid would
    amplify the change of x_hat. Two evaluations a step, one in Euler steps. Made for "rho" grids.
    """

    churn: float = option(0.0, "[0, 1e+06]")
    """noise added over the whole run (S_churn), 0 none; a step raises sigma / alpha by at most sqrt(2)."""
    churn_min: float = option(0.05, "(0, 1e+06]", needs="churn")
    """lowest sigma / alpha at which churn adds noise."""
    churn_max: float = option(50.0, "(0, 1e+06]", needs="churn")
    """highest sigma / alpha at which churn adds noise."""
    churn_noise: float = option(1.003, "(0, 10]", needs="churn")
    """standard deviation of the noise that churn adds."""

    def check(self) -> None:
        super().check()
        got = Verbatim(f"{self.churn_min} and {self.churn_max}")
        require(self.churn_min < self.churn_max, "churn_min", "be below churn_max", got)

    @property
    def is_stochastic(self) -> bool:
        return self.churn > 0

    @property
    def off_grid(self) -> str:
        return "churn" if self.churn else ""

    def add_noise(
        self, z_t: jax.Array, logsnr_t: jax.Array, noise: jax.Array, steps: int
    ) -> tuple[jax.Array, jax.Array]:
        if not self.churn:
            return z_t, logsnr_t
        level = jnp.exp(-jnp.maximum(logsnr_t, -100) / 2)  # S
        inside = (self.churn_min <= level) & (level <= self.churn_max)
        rise = jnp.where(inside, min(self.churn / steps, 2**0.5 - 1), 0.0)  # S grows by 1 + rise
        logsnr_hat = logsnr_t - 2 * jnp.log1p(rise)
        alpha_t, sigma_t = alpha_sigma(logsnr_t)
        alpha_hat, _ = alpha_sigma(logsnr_hat)
        extra = sigma_t * jnp.sqrt(rise * (2 + rise)) * self.churn_noise * noise
        safe_alpha = jnp.where(alpha_t > 0, alpha_t, 1.0)
        return jnp.where(inside, alpha_hat / safe_alpha * (z_t + extra), z_t), logsnr_hat

    def step(self, s: Step, carry: Any) -> tuple[jax.Array, Any]:
        alpha_t, sigma_t = alpha_sigma(s.logsnr_t)
        alpha_s, sigma_s = alpha_sigma(s.logsnr_s)
        euler = alpha_s * s.x_hat + sigma_s / sigma_t * (s.z_t - alpha_t * s.x_hat)
        h = (s.logsnr_s - s.logsnr_t) / 2

        def corrected():
            change = s.denoise(euler, s.logsnr_s) - s.x_hat
            return euler + alpha_s / 2 * jnp.expm1(h) * change

        return jax.lax.cond(s.is_last | (h > LONGEST_STEP), lambda: euler, corrected), carry

    def corrected(self, logsnr_grid: np.ndarray) -> np.ndarray:
        steps = np.arange(len(logsnr_grid) - 1)
        return (np.diff(logsnr_grid) / 2 <= LONGEST_STEP) & (steps < len(steps) - 1)
