"""DDIM (Song et al. 2020)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.samplers.sampler import SAMPLERS, Sampler, Step
from imagen_jax.diffusion.schedules import alpha_sigma
from imagen_jax.methods import option


@SAMPLERS.register("ddim")
@dataclasses.dataclass(frozen=True)
class DDIM(Sampler):
    """z_s = alpha_s x_hat + sigma_s sqrt(1 - eta^2 (1-r)) eps_hat + eta sqrt(1-r) sigma_s noise; first order.

    (Song et al. 2020, equations 12 and 16.) r is exp(logsnr_t - logsnr_s).
    """

    eta: float = option(0.0, "[0, 1]")
    """share of fresh noise in each step, 0 none and 1 ancestral."""

    reads_noise_x = True

    @property
    def is_stochastic(self) -> bool:
        return self.eta > 0

    def step(self, s: Step, carry: Any) -> tuple[jax.Array, Any]:
        alpha_t, sigma_t = alpha_sigma(s.logsnr_t)
        alpha_s, sigma_s = alpha_sigma(s.logsnr_s)
        eps_hat = (s.z_t - alpha_t * s.noise_x) / sigma_t
        if not self.eta:
            return alpha_s * s.x_hat + sigma_s * eps_hat, carry
        share = jnp.where(s.is_last, 0.0, -(self.eta**2) * jnp.expm1(s.logsnr_t - s.logsnr_s))
        z_s = alpha_s * s.x_hat + sigma_s * (jnp.sqrt(1 - share) * eps_hat + jnp.sqrt(share) * s.noise)
        return z_s, carry
