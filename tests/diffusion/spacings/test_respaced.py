"""Steps of discretely trained networks, so many in each part of the process."""

import dataclasses
import hashlib

import numpy as np
import pytest

from imagen_jax.config import override
from imagen_jax.config.validation import validate_sampling
from imagen_jax.diffusion import schedules
from imagen_jax.diffusion.spacings import RESPACINGS, Respaced
from imagen_jax.sampling import recipe

# Of the lists in diffusers 0.42.1, as text with commas between the steps.
DIGESTS = {
    "fast27": "036782d83e790f6e", "smart27": "e6fe59f611be8a8d", "smart50": "b19c5b1a07c0429a",
    "smart100": "4f6492e6644fd8fa", "smart185": "4a2cef7e71b249b2", "super27": "a08094a54b66d462",
    "super40": "0ae7966bc738a053", "super100": "b21e746348a2d781",
}  # fmt: skip


def steps_of(respacing, steps, start=1.0):
    schedule = schedules.make("discrete_cosine")
    grid = schedules.grid(schedule, steps, Respaced(respacing), start=start)
    return [round(float(t)) - 1 for t in 1000 * np.asarray(schedule.inverse(grid[:-1]))]


@pytest.mark.parametrize("name", RESPACINGS)
def test_named_respacings_are_the_published_lists(name):
    steps = ",".join(map(str, steps_of(name, sum(RESPACINGS[name]))))
    assert hashlib.sha256(steps.encode()).hexdigest()[:16] == DIGESTS[name]


def test_steps_in_equal_parts_every_nth_and_from_first_to_last():
    assert steps_of("3, 0,1", 4) == [667, 333, 166, 0]
    assert steps_of("3, 0,1", 2, start=0.3) == [166, 0]
    assert steps_of("leading", 8) == [875, 750, 625, 500, 375, 250, 125, 0]
    assert steps_of("leading", 3, start=0.1) == [66, 33, 0]
    assert steps_of(None, 4) == [999, 666, 333, 0] and steps_of(None, 1) == [999]
    assert steps_of(None, 3, start=0.101) == [100, 50, 0]


@pytest.mark.parametrize(
    ("respacing", "steps", "start", "left"),
    [("fast27", 27, 1.0, 27), ("3,0,1", 4, 0.3, 2), ("leading", 8, 0.5, 4), (None, 8, 0.5, 4), ("leading", 8, 0.01, 1)],
)
def test_a_stage_is_sampled_on_the_steps_that_are_left(respacing, steps, start, left, tiny_configs):
    config = dataclasses.replace(
        tiny_configs[0], process=dataclasses.replace(tiny_configs[0].process, schedule="discrete_cosine")
    )
    options = {"spacing": "respaced", "respacing": respacing, "steps": steps, "strength": start, "sampler": "ddpm"}
    sampling = validate_sampling(config, override(config.sampling, options))
    grid = recipe.logsnr_grid(config, sampling)
    times = [round(float(t)) - 1 for t in 1000 * np.asarray(schedules.make("discrete_cosine").inverse(grid[:-1]))]
    assert times == steps_of(respacing, left, start) and len(times) == left


@pytest.mark.parametrize("respacing", ["quick", "", "3,-1", "600,400", "0,0", "3;4", 3])
def test_what_is_no_respacing_is_refused(respacing):
    with pytest.raises(ValueError, match="respacing must "):
        Respaced(respacing)


@pytest.mark.parametrize(
    ("respacing", "steps", "start", "message"),
    [
        ("fast27", 20, 1.0, "steps must be 27, which respacing 'fast27' has from start 1 on; got 20"),
        ("3,0,1", 4, 0.3, "steps must be 2, which respacing '3,0,1' has from start 0.3 on; got 4"),
        ("0,5", 4, 0.1, "start must be at least 0.501 with spacing 'respaced', whose first step is there; got 0.1"),
        ("leading", 1001, 1.0, "steps must be 1000, which respacing 'leading' has"),
        (None, 5, 0.0001, "start must be at least 0.001 with spacing"),
    ],
)
def test_steps_and_start_that_do_not_fit_are_refused(respacing, steps, start, message):
    with pytest.raises(ValueError, match=message):
        schedules.grid(schedules.make("discrete_cosine"), steps, Respaced(respacing), start=start)
