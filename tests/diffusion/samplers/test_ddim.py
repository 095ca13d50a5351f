"""DDIM between determinism and ancestral sampling."""

import numpy as np

from imagen_jax.diffusion import samplers, schedules
from tests.diffusion.gaussian import (
    COSINE,
    denoise,
    many,
)


def test_eta_0_is_deterministic_and_eta_1_is_ddpm():
    keys, z_1 = many(16)
    run = lambda sampler: samplers.sample(
        denoise, z_1, schedules.grid(COSINE, 20), sampler=sampler, keys=keys
    )
    np.testing.assert_allclose(run(samplers.DDIM(1.0)), run(samplers.DDPM(0.0)), atol=2e-5)
    np.testing.assert_array_equal(run(samplers.DPMpp2MSDE(0.0)), run("dpmpp_2m"))
    assert not samplers.DDIM().is_stochastic and samplers.make("dpmpp_2m_sde").is_stochastic
