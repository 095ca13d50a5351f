"""Classifier-free guidance: the affine combination of two estimates in one call."""

import jax
import numpy as np

from imagen_jax.diffusion import guidance
from tests.diffusion.guidance.conftest import COND, LOGSNR, NULL, Z, counted, denoise, evaluate


def test_scale_one_is_off():
    run, calls = counted()
    guided = guidance.classifier_free(run, COND, NULL, 1.0)
    np.testing.assert_array_equal(guided(Z, LOGSNR), denoise(Z, LOGSNR, COND))
    jax.effects_barrier()
    assert calls == [3]


def test_is_the_affine_combination_in_one_call():
    run, calls = counted()
    got = evaluate(guidance.classifier_free(run, COND, NULL, 7.5))
    np.testing.assert_allclose(
        got, 7.5 * denoise(Z, LOGSNR, COND) - 6.5 * denoise(Z, LOGSNR, NULL), rtol=1e-4, atol=1e-5
    )
    assert calls == [6]


def test_scale_zero_is_unconditional():
    got = guidance.classifier_free(denoise, COND, NULL, 0.0)(Z, LOGSNR)
    np.testing.assert_allclose(got, denoise(Z, LOGSNR, NULL), atol=1e-6)
