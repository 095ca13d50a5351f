"""The times of discretely trained networks."""

import numpy as np
import pytest

from imagen_jax.diffusion import schedules


def test_trailing_uses_the_times_of_training():
    """Lin et al. 2023, section 3.3: from the last time of training on, rounded to its thousandths."""
    schedule = schedules.make("linear")
    grid = schedules.grid(schedule, 7, "trailing")
    np.testing.assert_allclose(
        1000 * schedule.inverse(grid[:-1]), [1000, 857, 714, 571, 429, 286, 143], atol=0.01
    )
    with pytest.raises(ValueError, match="steps must be at most 1000"):
        schedules.grid(schedule, 1001, "trailing")
