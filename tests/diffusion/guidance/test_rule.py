"""Rescaled guidance keeps the contrast of the conditional estimate."""

import numpy as np

from imagen_jax.diffusion import guidance
from tests.diffusion.guidance.conftest import COND, LOGSNR, NULL, Z, denoise

# --- rules ----------------------------------------------------------------------------------------


def test_rescaling_brings_the_contrast_back():
    full = guidance.rescaled(guidance.linear(), 1.0)
    got = guidance.classifier_free(denoise, COND, NULL, 9.0, rule=full)(Z, LOGSNR)
    np.testing.assert_allclose(
        got.std(axis=(1, 2, 3)), denoise(Z, LOGSNR, COND).std(axis=(1, 2, 3)), rtol=1e-4
    )
    plain = guidance.classifier_free(denoise, COND, NULL, 9.0)(Z, LOGSNR)
    half = guidance.rescaled(guidance.linear(), 0.5)
    np.testing.assert_allclose(
        guidance.classifier_free(denoise, COND, NULL, 9.0, rule=half)(Z, LOGSNR),
        (got + plain) / 2, rtol=1e-4, atol=1e-5,
    )  # fmt: skip
