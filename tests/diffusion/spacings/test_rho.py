"""EDM's spacing against its formula."""

import numpy as np

from imagen_jax.diffusion import schedules


def test_rho_is_the_published_grid():
    """Karras et al. 2022, equation 5, and the clean level after it."""
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    grid = schedules.grid(schedules.make("cosine"), 18, "rho")
    np.testing.assert_allclose(np.exp(-grid[:-1] / 2), sigma, rtol=1e-5)
    assert grid[-1] == schedules.LOGSNR_MAX
