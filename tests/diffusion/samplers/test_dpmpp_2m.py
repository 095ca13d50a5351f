"""DPM-Solver++(2M) where it equals other samplers."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import samplers
from tests.diffusion.gaussian import denoise, many


def test_one_step_is_that_of_ddim():
    """Before the second step there is no past, and both are of first order."""
    _, z_1 = many(5)
    for grid in ([-3.0, 1.0], [0.0, 6.0]):
        both = (samplers.DPMpp2M(), samplers.DDIM())
        one, other = (samplers.sample(denoise, z_1, jnp.array(grid), sampler=each) for each in both)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_without_fresh_noise_the_stochastic_form_is_the_deterministic_one():
    _, z_1 = many(5)
    grid = jnp.linspace(-4, 4, 6)
    still, moving = samplers.DPMpp2MSDE(0.0), samplers.DPMpp2MSDE(1.0)
    assert not still.is_stochastic and moving.is_stochastic
    expected = samplers.sample(denoise, z_1, grid, sampler=samplers.DPMpp2M())
    np.testing.assert_array_equal(samplers.sample(denoise, z_1, grid, sampler=still), expected)
    with pytest.raises(ValueError, match="eta must be in"):
        samplers.make("dpmpp_2m_sde", eta=1.5)
