"""Ancestral sampling with the variance that a network estimates."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import denoisers, samplers, schedules
from tests.diffusion.gaussian import COSINE, denoise


def run(denoise, gamma):
    keys = jax.random.split(jax.random.key(0), 2)
    z_1, grid = samplers.normal(keys, (1, 2, 1)), schedules.grid(COSINE, 5)
    return samplers.sample(denoise, z_1, grid, sampler=samplers.DDPM(gamma), keys=keys)


def estimating(shares):
    log_variance = jnp.broadcast_to(jnp.array(shares)[None, None, :, None], (2, 1, 2, 1))
    return lambda z_t, logsnr_t: denoisers.Estimate(denoise(z_t, logsnr_t), log_variance=log_variance)


def test_an_estimated_variance_is_that_of_the_steps():
    """Its share between the bounds is the network's, value by value."""
    got = run(estimating([0.3, 1.0]), None)
    for column, gamma in enumerate((0.3, 1.0)):
        np.testing.assert_allclose(got[:, :, column], run(denoise, gamma)[:, :, column], rtol=1e-5, atol=1e-5)


def test_a_gamma_that_is_given_takes_the_place_of_what_is_estimated():
    for gamma in (0.0, 0.7):
        np.testing.assert_array_equal(run(estimating([0.3, 1.0]), gamma), run(denoise, gamma))
    np.testing.assert_array_equal(run(denoise, None), run(denoise, 0.2))
    assert np.abs(run(denoise, 0.0) - run(denoise, 0.7)).min() > 1e-3
