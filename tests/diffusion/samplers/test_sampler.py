"""Samplers by name."""

import jax.numpy as jnp
import pytest

from imagen_jax.diffusion import samplers, schedules
from tests.diffusion.gaussian import (
    COSINE,
    denoise,
)


def test_unknown_sampler_and_order():
    with pytest.raises(ValueError, match="ddim, ddpm, dpmpp_2m, dpmpp_2m_sde, heun, unipc; got 'euler'"):
        samplers.sample(denoise, jnp.zeros((1, 1, 1, 1)), schedules.grid(COSINE, 2), sampler="euler")
    with pytest.raises(ValueError, match="order must be at most 3; got 4"):
        samplers.UniPC(4)
