"""Static thresholding."""

import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import thresholds


def test_values_are_clipped():
    found = thresholds.Static()(jnp.array([-9.0, -1.0, 0.25, 1.0, 1.5]))
    np.testing.assert_array_equal(found, [-1, -1, 0.25, 1, 1])
