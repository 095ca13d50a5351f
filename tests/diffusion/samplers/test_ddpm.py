"""Ancestral sampling with the variance that a network estimates."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import denoisers, samplers, schedules
from tests.diffusion.gaussian import (
    COSINE,
    denoise,
)


def test_an_estimated_variance_takes_the_place_of_gamma():
    """Its share between the bounds is the network's, value by value."""
    keys = jax.random.split(jax.random.key(0), 2)
    z_1 = samplers.normal(keys, (1, 2, 1))
    run = lambda denoise, gamma: samplers.sample(
        denoise, z_1, schedules.grid(COSINE, 5), sampler=samplers.DDPM(gamma), keys=keys
    )
    shares = jnp.broadcast_to(jnp.array([0.3, 1.0])[None, None, :, None], z_1.shape)
    estimating = lambda z_t, logsnr_t: denoisers.Estimate(denoise(z_t, logsnr_t), log_variance=shares)
    got = run(estimating, 0.7)
    for column, gamma in enumerate((0.3, 1.0)):
        np.testing.assert_allclose(got[:, :, column], run(denoise, gamma)[:, :, column], rtol=1e-5, atol=1e-5)
