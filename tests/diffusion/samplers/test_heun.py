"""EDM's sampler on its own grids, and its churn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import samplers, schedules
from tests.diffusion.gaussian import (
    COSINE,
    MEAN,
    VAR,
    denoise,
    error,
    many,
)


@pytest.mark.parametrize("spacing", ["logsnr", "rho"])
def test_heun_reaches_the_data_on_the_grids_of_sigma(spacing):
    grid = schedules.grid(COSINE, 32, spacing)
    assert error(samplers.Heun(), grid) < 0.03


def test_churn_raises_the_level_and_adds_the_missing_variance():
    """Before the model is called z has the exact marginal of the noisier level."""
    num = 50_000
    seen = {}

    def recorded(z_t, logsnr_t):
        jax.debug.callback(lambda z, logsnr: seen.setdefault(float(logsnr[0]), np.asarray(z)), z_t, logsnr_t)
        return denoise(z_t, logsnr_t)

    keys, eps = many(num)
    grid = jnp.array([0.0, 3.0])
    alpha, sigma = schedules.alpha_sigma(0.0)
    x = MEAN + VAR**0.5 * samplers.normal(jax.random.split(jax.random.key(7), num), (1, 1, 1))
    sampler = samplers.Heun(churn=0.3, churn_noise=1.0)
    jax.block_until_ready(
        samplers.sample(recorded, alpha * x + sigma * eps, grid, sampler=sampler, keys=keys)
    )
    jax.effects_barrier()
    [logsnr] = [level for level in seen if level < -0.1]
    assert np.exp(-logsnr / 2) == pytest.approx(1.3, rel=1e-5)
    alpha, sigma = schedules.alpha_sigma(logsnr)
    assert seen[logsnr].mean() == pytest.approx(float(alpha) * MEAN, abs=0.02)
    assert seen[logsnr].var() == pytest.approx(float(alpha**2 * VAR + sigma**2), rel=0.03)
