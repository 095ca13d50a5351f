"""Grids of every spacing run from noise to the image, or from a later start."""

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import schedules

NAMES = list(schedules.SCHEDULES)


# --- grids ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("spacing", schedules.SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 10, 250])
def test_grids_run_from_noise_to_image(name, spacing, steps):
    grid = np.asarray(schedules.grid(schedules.make(name), steps, spacing))
    assert grid.shape == (steps + 1,) and (np.diff(grid) > 0).all() and np.isfinite(grid).all()


@pytest.mark.parametrize("spacing", schedules.SPACINGS)
def test_grids_of_a_zero_terminal_schedule_start_at_noise_alone(spacing):
    grid = schedules.grid(schedules.zero_terminal(schedules.make("linear")), 8, spacing)
    assert jnp.isneginf(grid[0]) and (jnp.diff(grid) > 0).all()


@pytest.mark.parametrize("spacing", schedules.SPACINGS)
def test_a_later_start(spacing):
    schedule = schedules.make("cosine")
    assert schedules.grid(schedule, 5, spacing, start=0.4)[0] == schedule.logsnr(0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1; got 0"),
        (
            {"steps": 4, "spacing": "leading"},
            "spacing must be one of logsnr, rho, t, trailing, respaced; got 'leading'",
        ),
        ({"steps": 4, "start": 0.0}, r"start must be in \(0, 1\]; got 0.0"),
        (
            {"steps": 4, "spacing": "rho", "sigma_min": 9.0, "sigma_max": 1.0},
            "sigma_min must be positive and",
        ),
    ],
)
def test_wrong_grids(options, message):
    with pytest.raises(ValueError, match=message):
        schedules.grid(schedules.make("cosine"), **options)
