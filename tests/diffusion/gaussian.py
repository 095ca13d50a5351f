"""Gaussian data, whose exact denoiser and probability flow are known."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import samplers, schedules

MEAN, VAR = 0.3, 0.25
COSINE = schedules.make("cosine")
DETERMINISTIC = {  # sampler, order of convergence
    "ddim": (samplers.DDIM(), 1),
    "dpmpp_2m": (samplers.DPMpp2M(), 2),
    "heun": (samplers.Heun(), 2),
    "unipc order 1": (samplers.UniPC(1), 2),  # its corrector lifts it by one
    "unipc order 2": (samplers.UniPC(2), 3),
}
STOCHASTIC = {
    "ddpm gamma 0": samplers.DDPM(0.0),
    "ddpm gamma 0.3": samplers.DDPM(0.3),
    "ddpm gamma 1": samplers.DDPM(1.0),
    "ddim eta 0.6": samplers.DDIM(0.6),
    "dpmpp_2m_sde": samplers.DPMpp2MSDE(1.0),
    "dpmpp_2m_sde eta 0.5": samplers.DPMpp2MSDE(0.5),
    "heun with churn": samplers.Heun(churn=40.0, churn_noise=1.0),
}
ALL = {name: sampler for name, (sampler, _) in DETERMINISTIC.items()} | STOCHASTIC


def denoise(z_t, logsnr_t):
    """E[x | z_t] for x ~ N(MEAN, VAR)."""
    alpha, sigma = (a[:, None, None, None] for a in schedules.alpha_sigma(logsnr_t))
    return MEAN + alpha * VAR * (z_t - alpha * MEAN) / (alpha**2 * VAR + sigma**2)


def alpha64(logsnr):
    return np.sqrt(1 / (1 + np.exp(-np.float64(logsnr))))


def probability_flow(z_t, logsnr_t, logsnr_s):
    """Where the exact ODE takes z_t: its standardised value is constant. float64."""
    std = lambda logsnr: np.sqrt(alpha64(logsnr) ** 2 * VAR + 1 / (1 + np.exp(np.float64(logsnr))))
    return alpha64(logsnr_s) * MEAN + std(logsnr_s) * (z_t - alpha64(logsnr_t) * MEAN) / std(logsnr_t)


def error(sampler, grid):
    z_1 = jnp.linspace(-2, 2, 8).reshape(8, 1, 1, 1)
    exact = probability_flow(np.asarray(z_1, np.float64), float(grid[0]), float(grid[-1]))
    return np.abs(samplers.sample(denoise, z_1, grid, sampler=sampler) - exact).max()


@dataclasses.dataclass(frozen=True)
class WithNoise(samplers.Sampler):
    """A sampler from outside the package: `inner` with given noise in place of that of the keys."""

    inner: Any
    replaced: Any  # Step -> Step
    noise: Any  # (z_t, logsnr_t) -> noise
    is_stochastic = True

    def check(self):
        pass

    def init(self, z_1, logsnr_grid):
        return self.inner.init(z_1, logsnr_grid)

    def step(self, s, carry):
        return self.inner.step(self.replaced(s), carry)

    def add_noise(self, z_t, logsnr_t, noise, steps):
        return self.inner.add_noise(z_t, logsnr_t, self.noise(z_t, logsnr_t), steps)


def many(num, seed=1, rows=1):
    """Keys and pictures [num, rows, rows, 1] of noise, every pixel a sample of its own: few keys make many samples
    quickly."""
    return jax.random.split(jax.random.key(seed), num), samplers.normal(
        jax.random.split(jax.random.key(seed + 1), num), (rows, rows, 1)
    )
