"""What all thresholds have in common."""

import jax
import numpy as np
import pytest

from imagen_jax.diffusion.thresholds import THRESHOLDS


@pytest.mark.parametrize("name", THRESHOLDS)
def test_each_image_is_thresholded_by_itself(name):
    threshold = THRESHOLDS[name]()
    x_hat = jax.random.normal(jax.random.key(0), (3, 4, 4, 3)) * np.array([0.1, 1, 9])[:, None, None, None]
    together = threshold(x_hat)
    for i in range(3):
        np.testing.assert_array_equal(together[i], threshold(x_hat[i : i + 1])[0])
    assert threshold.is_identity == bool((together == x_hat).all())
