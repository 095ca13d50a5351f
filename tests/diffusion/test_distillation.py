"""The x that stands for several steps of DDIM, against the steps themselves, in float64 and by the sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import distillation, samplers, schedules
from tests.diffusion.gaussian import COSINE, denoise

LEVELS = np.stack([[-20.0, -4.0, 0.5, 20.0], [-np.inf, -3.0, -3.0, 1.0], [2.0, 2.001, 2.002, 2.003]], axis=1)  # [4, 3]


def alpha_sigma64(logsnr):
    return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def ddim64(z_t, x, logsnr_t, logsnr_s):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma64(logsnr_t), alpha_sigma64(logsnr_s)
    return alpha_s * x + sigma_s * (z_t - alpha_t * x) / sigma_t


@pytest.mark.parametrize("column", range(LEVELS.shape[1]))
def test_the_mean_of_the_estimates_is_the_x_of_one_step(column):
    """Also from noise alone, over a step of no length, and over steps so short that a difference would lose digits."""
    rng, levels = np.random.default_rng(0), LEVELS[:, column]
    z_t, x_hats = rng.normal(size=(1, 4, 4, 3)), rng.normal(size=(3, 1, 4, 4, 3))
    z_s = z_t
    for x_hat, logsnr_t, logsnr_s in zip(x_hats, levels[:-1], levels[1:], strict=True):
        z_s = ddim64(z_s, x_hat, logsnr_t, logsnr_s)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma64(levels[0]), alpha_sigma64(levels[-1])
    direct = (z_s - sigma_s / sigma_t * z_t) / (alpha_s - sigma_s / sigma_t * alpha_t)
    weights = distillation.weights(jnp.asarray(levels[:, None], "float32"))
    np.testing.assert_allclose(weights.sum(), 1, rtol=1e-6)
    # Levels are float32, so that the share of steps of 0.001 is known to four digits.
    tolerance = 1e-3 if column == 2 else 1e-5
    np.testing.assert_allclose(np.tensordot(weights[:, 0], x_hats, 1), direct, atol=tolerance)
    np.testing.assert_allclose(ddim64(z_t, direct, levels[0], levels[-1]), z_s, atol=1e-6)


def grid_and_noise(steps):
    """[steps + 1, 8] levels, the same for all images, and z_1 [8, 1, 1, 1]."""
    grid = schedules.grid(COSINE, steps)
    return grid, jnp.broadcast_to(grid[:, None], (steps + 1, 8)), jnp.linspace(-2, 2, 8).reshape(8, 1, 1, 1)


def test_joined_steps_end_where_the_sampler_ends():
    grid, levels, z_1 = grid_and_noise(4)
    x, z_0 = distillation.joined(denoise, z_1, levels)
    np.testing.assert_allclose(z_0, samplers.sample(denoise, z_1, grid), atol=1e-6)
    once = samplers.sample(lambda z_t, logsnr_t: x, z_1, grid[jnp.array([0, -1])])
    np.testing.assert_allclose(once, z_0, atol=1e-6)


def test_a_consistent_student_ends_where_the_teacher_ends():
    """From each level: all remaining steps of the teacher, and its first one with the rest by the student."""
    _, levels, z_1 = grid_and_noise(4)
    for first in range(4):
        rest = lambda z_t, logsnr_t: distillation.joined(denoise, z_t, levels[first + 1 :])[0]  # noqa: B023
        if first == 3:  # nothing remains: whatever the student says
            rest = lambda z_t, logsnr_t: z_t + 7
        z_t = distillation.joined(denoise, z_1, levels[: first + 1])[1] if first else z_1
        found = distillation.consistent(denoise, rest, z_t, levels[jnp.array([first, first + 1, 4])])
        np.testing.assert_allclose(found, distillation.joined(denoise, z_t, levels[first:])[0], atol=2e-6)


def test_a_student_is_moved_from_its_own_mean_towards_the_teachers():
    """By (x_student - x_teacher) over mean |x - x_teacher|, or over a level of 8 bits if that is larger."""
    x, x_teacher, x_student = (jax.random.normal(jax.random.key(i), (3, 4, 4, 2)) for i in range(3))
    x = x.at[2].set(x_teacher[2])
    value, pull = jax.vjp(distillation.moved, x, x_teacher, x_student)
    np.testing.assert_array_equal(value, np.zeros(3))
    on_x, *on_means = pull(jnp.ones(3))
    x, x_teacher, x_student = (np.asarray(each, np.float64) for each in (x, x_teacher, x_student))
    size = np.maximum(np.abs(x - x_teacher).mean((1, 2, 3), keepdims=True), 1 / 255)
    np.testing.assert_allclose(on_x, (x_student - x_teacher) / size / x[0].size, rtol=1e-5)
    assert not any(np.any(each) for each in on_means)
