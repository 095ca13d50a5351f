"""DPM-Solver++(2M) and its stochastic form (Lu et al. 2022)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.samplers.sampler import SAMPLERS, Sampler, Step
from imagen_jax.diffusion.schedules import alpha_sigma
from imagen_jax.methods import option


@SAMPLERS.register("dpmpp_2m")
@dataclasses.dataclass(frozen=True)
class DPMpp2M(Sampler):
    """DPM-Solver++(2M) (Lu et al. 2022): second order, from the last two x_hat.

    With H = (1 + eta) h, r = h_before / h and eta = 0 (see `DPMpp2MSDE`),
    D = (1 + 1/(2r)) x_hat - 1/(2r) x_hat_before,
    z_s = (sigma_s / sigma_t) e^(-eta h) z_t - alpha_s expm1(-H) D + sigma_s sqrt(1 - e^(-2 eta h)) noise.
    The first step has no past, and the last goes to no noise where h is unbounded: both use D = x_hat.
    """

    def init(self, z_1: jax.Array, logsnr_grid: jax.Array) -> Any:
        return jnp.zeros_like(z_1), jnp.ones((), jnp.float32)  # x_hat and h of the step before

    def step(self, s: Step, carry: Any) -> tuple[jax.Array, Any]:
        x_before, h_before = carry
        _, sigma_t = alpha_sigma(s.logsnr_t)
        alpha_s, sigma_s = alpha_sigma(s.logsnr_s)
        h = (s.logsnr_s - s.logsnr_t) / 2
        extrapolation = jnp.where(s.is_first | s.is_last, 0.0, h / (2 * h_before))
        d = s.x_hat + extrapolation * (s.x_hat - x_before)
        if not self.is_stochastic:
            return sigma_s / sigma_t * s.z_t - alpha_s * jnp.expm1(-h) * d, (s.x_hat, h)
        shrink = jnp.where(s.is_last, 0.0, self.eta * h)
        z_s = sigma_s / sigma_t * jnp.exp(-shrink) * s.z_t - alpha_s * jnp.expm1(-h - shrink) * d
        return z_s + sigma_s * jnp.sqrt(-jnp.expm1(-2 * shrink)) * s.noise, (s.x_hat, h)


@SAMPLERS.register("dpmpp_2m_sde")
@dataclasses.dataclass(frozen=True)
class DPMpp2MSDE(DPMpp2M):
    """The stochastic differential equation of `DPMpp2M`: fresh noise in each step."""

    eta: float = option(1.0, "[0, 1]")
    """share of fresh noise in each step, 0 none and 1 ancestral."""

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0
