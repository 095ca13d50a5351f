"""Scales that depend on the level of noise, and the calls that they save."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import guidance, samplers, schedules
from tests.diffusion.guidance.conftest import COND, NULL, Z, counted, denoise, evaluate


def test_outside_the_interval_only_the_conditional_call_is_paid_for():
    run, calls = counted()
    guided = guidance.classifier_free(run, COND, NULL, guidance.interval(4.0, -2.0, 2.0))
    full = guidance.classifier_free(denoise, COND, NULL, 4.0)
    for level, paid in ((-3.0, 3), (-2.0, 6), (0.0, 6), (2.0, 6), (2.5, 3)):
        calls.clear()
        logsnr = jnp.full((3,), level)
        got = evaluate(guided, logsnr)
        assert calls == [paid]
        expected = full(Z, logsnr) if paid == 6 else denoise(Z, logsnr, COND)
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_the_interval_saves_calls_inside_the_sampler():
    run, calls = counted()
    grid = schedules.grid(schedules.make("cosine"), 10)
    guided = guidance.classifier_free(run, COND, NULL, guidance.interval(4.0, -2.0, 2.0))
    jax.block_until_ready(jax.jit(lambda z: samplers.sample(guided, z, grid))(Z))
    jax.effects_barrier()
    inside = int(np.sum((grid[:-1] >= -2) & (grid[:-1] <= 2)))
    assert sorted(calls) == [3] * (10 - inside) + [6] * inside and 0 < inside < 10


def test_oscillation():
    """Imagen Video: high for the first steps, then low and high by turns; low 1 costs one call."""
    grid = schedules.grid(schedules.make("cosine"), 8)
    scale = guidance.oscillating(15.0, 1.0, 3, grid)
    assert [float(scale(level[None])[0]) for level in grid[:-1]] == [15, 15, 15, 1, 15, 1, 15, 1]
    run, calls = counted()
    guided = guidance.classifier_free(run, COND, NULL, scale)
    jax.block_until_ready(samplers.sample(guided, Z, grid))
    jax.effects_barrier()
    assert calls == [6, 6, 6, 3, 6, 3, 6, 3]
