import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import schedules
from imagen_jax.models.conditioning import LevelEmbedding, StepEmbedding, conditioning_images, sinusoid
from imagen_jax.structs import Cond
from tests.models.conftest import KEY, text_cond


def test_sinusoids_have_geometrically_spaced_frequencies():
    out = sinusoid(jnp.array([0.0, 3.0]), 4, max_period=100.0)
    np.testing.assert_allclose(out[0], [0, 0, 1, 1], atol=1e-6)
    np.testing.assert_allclose(out[1], [np.sin(3), np.sin(0.3), np.cos(3), np.cos(0.3)], atol=1e-6)


def test_levels_are_embedded_by_the_time_of_a_cosine_schedule():
    module, t = LevelEmbedding(8), jnp.array([0.1, 0.5, 0.9])
    logsnr = schedules.cosine(t)
    params = module.init(KEY, logsnr)
    hidden, out = (params["params"][name] for name in ("hidden", "out"))
    expected = jax.nn.silu(sinusoid(1000 * t, 2) @ hidden["kernel"]) @ out["kernel"]
    np.testing.assert_allclose(module.apply(params, logsnr), expected, rtol=1e-4, atol=1e-4)


def test_the_low_res_image_comes_before_control():
    low_res, control = jnp.zeros((2, 4, 4, 3)), jnp.ones((2, 4, 4, 1))
    cond = Cond(text_cond(), low_res_noised=low_res, aug_logsnr=jnp.zeros(2), control=control)
    np.testing.assert_array_equal(conditioning_images(cond)[0, 0, 0], [0, 0, 0, 1])
    assert conditioning_images(Cond(text_cond())) is None


def test_steps_are_whole_where_rounding_alone_moved_them():
    """Their code has the cosines first, as published networks of 1000 steps have it."""
    module, steps = StepEmbedding(8, width=4), np.array([0, 3, 499, 998, 999])
    time = (steps + 1).astype(np.float32) / np.float32(1000)
    params = module.init(KEY, time)
    hidden, out = (params["params"][name] for name in ("hidden", "out"))
    angle = steps[:, None] * np.array([1, 0.01])[None]
    expected = jax.nn.silu(np.concatenate([np.cos(angle), np.sin(angle)], axis=1) @ hidden["kernel"]) @ out["kernel"]
    np.testing.assert_allclose(module.apply(params, time), expected, atol=2e-6)
    between = module.apply(params, jnp.array([0.5005, 0.4995]))
    assert np.abs(between - module.apply(params, jnp.array([0.5, 0.5]))).max(axis=1).min() > 1e-4
