"""Adaptive projected guidance against the published algorithm."""

import jax
import numpy as np
import pytest

from imagen_jax.diffusion import guidance, samplers, schedules
from tests.diffusion.guidance.conftest import COND, LOGSNR, NULL, Z, denoise


def reference_apg(x_cond, x_null, w, eta, norm):
    """Sadat et al. 2024, algorithm 1, image by image in float64; `norm` is a root-mean-square."""
    out = []
    for c, n in zip(np.asarray(x_cond, np.float64), np.asarray(x_null, np.float64), strict=True):
        d = c - n
        if norm is not None:
            d = d * min(1, norm * np.sqrt(d.size) / np.linalg.norm(d))
        unit = c / np.linalg.norm(c)
        along = np.sum(d * unit) * unit
        out.append(c + (w - 1) * (d - along + eta * along))
    return np.stack(out)


@pytest.mark.parametrize(("eta", "norm"), [(0.0, None), (0.3, None), (0.0, 0.2), (1.0, 1e6)])
def test_projected_guidance_is_the_published_algorithm(eta, norm):
    x_cond, x_null = jax.random.normal(jax.random.key(1), (2, 3, 4, 4, 2))
    got, _ = guidance.projected(eta, norm).combine(x_cond, x_null, 6.0, ())
    np.testing.assert_allclose(got, reference_apg(x_cond, x_null, 6.0, eta, norm), rtol=1e-4, atol=1e-4)
    if eta == 1:  # nothing is taken away: classifier-free guidance
        np.testing.assert_allclose(got, x_null + 6 * (x_cond - x_null), rtol=1e-4, atol=1e-4)


def test_projected_guidance_remembers_with_momentum():
    guided = guidance.classifier_free(denoise, COND, NULL, 3.0, rule=guidance.projected(1.0, momentum=-0.5))
    assert isinstance(guided, guidance.Stateful)
    x_1, state = guided.call(Z, LOGSNR, guided.init(Z))
    x_2, _ = guided.call(Z, LOGSNR, state)
    cond, null = denoise(Z, LOGSNR, COND), denoise(Z, LOGSNR, NULL)
    np.testing.assert_allclose(x_1, cond + 2 * (cond - null), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(x_2, cond + 2 * (cond - null) * 0.5, rtol=1e-4, atol=1e-5)
    grid = schedules.grid(schedules.make("cosine"), 4)
    for sampler in ("dpmpp_2m", "heun"):
        assert np.isfinite(samplers.sample(guided, Z, grid, sampler=sampler)).all()
