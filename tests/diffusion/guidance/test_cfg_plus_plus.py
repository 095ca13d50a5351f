"""CFG++: the guided estimate, noised along the unconditional one."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import guidance, samplers, schedules
from tests.diffusion.guidance.conftest import COND, NULL, Z, counted, denoise, evaluate


def test_cfg_plus_plus_renoises_along_the_unconditional_estimate():
    """Chung et al. 2024, algorithm 2: z_s = alpha_s x_w + sigma_s eps_null."""
    run, calls = counted()
    guided = guidance.classifier_free(run, COND, NULL, 0.6, rule=guidance.plus_plus())
    grid = jnp.array([0.0, 1.0])
    z_s = samplers.sample(guided, Z, grid)
    jax.effects_barrier()
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedules.alpha_sigma(level) for level in grid)
    cond, null = (denoise(Z, jnp.zeros(3), c) for c in (COND, NULL))
    eps = (Z - alpha_t * null) / sigma_t
    np.testing.assert_allclose(z_s, alpha_s * (null + 0.6 * (cond - null)) + sigma_s * eps, atol=1e-5)
    assert calls == [6]


def test_cfg_plus_plus_at_scale_one_still_needs_both():
    run, calls = counted()
    evaluate(guidance.classifier_free(run, COND, NULL, 1.0, rule=guidance.plus_plus()))
    assert calls == [6]
