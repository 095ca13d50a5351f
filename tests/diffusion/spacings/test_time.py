"""Equal steps of time."""

import numpy as np

from imagen_jax.diffusion import schedules


def test_half_the_strength_takes_the_later_half_of_the_steps():
    schedule = schedules.make("cosine")
    whole, half = schedules.grid(schedule, 20), schedules.grid(schedule, 10, start=0.5)
    np.testing.assert_allclose(half, whole[10:], rtol=1e-5, atol=1e-5)
