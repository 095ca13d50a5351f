"""Options of dynamic thresholding reach the function that computes it."""

import jax
import numpy as np
import pytest

from imagen_jax.diffusion import thresholding, thresholds

X_HAT = 3 * jax.random.normal(jax.random.key(0), (2, 4, 4, 3))


@pytest.mark.parametrize(("percentile", "floor", "cap"), [(0.9, 1.0, None), (0.9, 0.5, 2.0), (0.5, 1.0, 1.0)])
def test_options_are_those_of_the_function(percentile, floor, cap):
    found = thresholds.Dynamic(percentile, floor, cap)(X_HAT)
    np.testing.assert_array_equal(found, thresholding.dynamic(X_HAT, percentile, cap, floor))


def test_a_cap_below_the_floor_is_refused():
    thresholds.Dynamic(floor=2.0, cap=2.0).check()
    with pytest.raises(ValueError, match=r"^cap must be at least floor \(2\); got 1.5"):
        thresholds.Dynamic(floor=2.0, cap=1.5).check()
