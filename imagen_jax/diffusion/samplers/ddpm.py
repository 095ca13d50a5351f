"""Ancestral sampling (Ho et al. 2020)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.diffusion import process
from imagen_jax.diffusion.samplers.sampler import SAMPLERS, Sampler, Step
from imagen_jax.diffusion.schedules import alpha_sigma
from imagen_jax.methods import option

_GAMMA = 0.2  # of a network that does not estimate it


@SAMPLERS.register("ddpm")
@dataclasses.dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling (paper appendix A): a draw of q(z_s | z_t, x_hat) with interpolated variance.

    log variance = (1 - gamma) log((1-r) sigma_s^2) + gamma log((1-r) sigma_t^2). Without a gamma, a denoiser that
    estimates `log_variance` gives each value its own (Nichol & Dhariwal 2021, equation 15), and others have 0.2.
    """

    gamma: float | None = option(None, "[0, 1]", flat="ddpm_gamma")
    """interpolates the log-variance between its bounds, 0 lower and 1 upper; by default as the network estimates it,
    0.2 if it does not."""

    is_stochastic = True

    def step(self, s: Step, carry: Any) -> tuple[jax.Array, Any]:
        mean, lower = process.posterior(z_t=s.z_t, x=s.x_hat, logsnr_t=s.logsnr_t, logsnr_s=s.logsnr_s)
        _, sigma_t = alpha_sigma(s.logsnr_t)
        _, sigma_s = alpha_sigma(s.logsnr_s)
        estimated = _GAMMA if s.log_variance is None else s.log_variance
        share = estimated if self.gamma is None else self.gamma
        std = jnp.sqrt(lower) * (sigma_t / sigma_s) ** share
        return mean + jnp.where(s.is_last, 0.0, std) * s.noise, carry
