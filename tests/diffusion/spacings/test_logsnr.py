"""Equal steps of log-SNR."""

import numpy as np

from imagen_jax.diffusion import schedules


def test_logsnr_is_evenly_spaced():
    grid = schedules.grid(schedules.make("cosine"), 9, "logsnr", sigma_min=0.1, sigma_max=10.0)
    np.testing.assert_allclose(np.diff(grid[:-1]), np.full(8, 4 * np.log(10) / 8), rtol=1e-5)
