"""Denoisers that are guided by several prompts, a negative one, or a weaker model."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import guidance, samplers, schedules
from tests.diffusion.guidance.conftest import COND, LOGSNR, NULL, Z, counted, denoise, evaluate

OTHER = {"a": jnp.array([-1.0, 0.5, 0.0])}


def test_prompts_with_weights_are_one_call():
    run, calls = counted()
    got = evaluate(guidance.classifier_free(run, (COND, OTHER), NULL, 3.0, weights=(0.7, 0.3)))
    null = denoise(Z, LOGSNR, NULL)
    pulls = 0.7 * (denoise(Z, LOGSNR, COND) - null) + 0.3 * (denoise(Z, LOGSNR, OTHER) - null)
    np.testing.assert_allclose(got, null + 3 * pulls, rtol=1e-4, atol=1e-5)
    assert calls == [9]
    with pytest.raises(ValueError, match="sum to 1"):
        guidance.classifier_free(denoise, (COND, OTHER), NULL, 3.0, weights=(0.7, 0.7))


def test_a_negative_prompt_takes_the_place_of_the_null():
    got = guidance.classifier_free(denoise, COND, OTHER, 3.0)(Z, LOGSNR)
    expected = 3 * denoise(Z, LOGSNR, COND) - 2 * denoise(Z, LOGSNR, OTHER)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_autoguidance_steers_away_from_the_weaker_model():
    weak = lambda z_t, logsnr_t, cond: 0.5 * denoise(z_t, logsnr_t, cond)
    got = guidance.autoguidance(denoise, weak, COND, COND, 2.0)(Z, LOGSNR)
    np.testing.assert_allclose(got, 1.5 * denoise(Z, LOGSNR, COND), rtol=1e-4, atol=1e-5)
    run, calls = counted()
    evaluate(guidance.autoguidance(denoise, run, COND, COND, 1.0))
    assert not calls


def test_thresholds_before_the_combination():
    clip = lambda x_hat: jnp.clip(x_hat, -0.1, 0.1)
    got = guidance.classifier_free(denoise, COND, NULL, 3.0, threshold=clip)(Z, LOGSNR)
    cond, null = (clip(denoise(Z, LOGSNR, c)) for c in (COND, NULL))
    np.testing.assert_allclose(got, null + 3 * (cond - null), atol=1e-6)
    off = guidance.classifier_free(denoise, COND, NULL, 1.0, threshold=clip)(Z, LOGSNR)
    np.testing.assert_allclose(off, cond, atol=1e-6)


# --- statistics -----------------------------------------------------------------------------------


def test_composed_gaussians_have_the_moments_of_their_product():
    """Prompts N(m_i, 1) and a null N(0, 1): the weighted scores are those of N(w sum_i weight_i m_i, 1)."""
    num = 20_000

    def gaussian(z_t, logsnr_t, mean):
        alpha, sigma = (a[:, None, None, None] for a in schedules.alpha_sigma(logsnr_t))
        mean = mean[:, None, None, None]
        return mean + alpha * (z_t - alpha * mean) / (alpha**2 + sigma**2)

    constant = lambda value: jnp.full((num,), value)
    guided = guidance.classifier_free(
        gaussian, (constant(0.2), constant(0.6)), constant(0.0), 2.0, weights=(0.25, 0.75)
    )
    z_1 = samplers.normal(jax.random.split(jax.random.key(0), num), (1, 1, 1))
    x = samplers.sample(guided, z_1, schedules.grid(schedules.make("cosine"), 64), sampler="dpmpp_2m")
    assert float(x.mean()) == pytest.approx(2 * (0.25 * 0.2 + 0.75 * 0.6), abs=0.03)
    assert float(x.std()) == pytest.approx(1, abs=0.03)
