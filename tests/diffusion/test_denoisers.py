"""Estimates pass on what a network says beside x_hat."""

import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import denoisers, guidance, samplers, schedules


def test_guidance_passes_the_variance_of_the_conditional_estimate_on():
    z, cond, null = jnp.ones((2, 1, 1, 1)), jnp.array([1.0, 2.0]), jnp.zeros(2)
    column = lambda value: value[:, None, None, None]
    estimate = lambda z_t, logsnr_t, cond: denoisers.Estimate(z_t * column(cond), log_variance=z_t * column(cond) / 4)
    guided = guidance.classifier_free(estimate, cond, null, 3.0)
    out = denoisers.then(guided, lambda x: x + 1)(z, jnp.zeros(2))
    np.testing.assert_allclose(out.x.ravel(), 3 * cond + 1)
    np.testing.assert_allclose(out.log_variance.ravel(), cond / 4)
    assert out.noise_x is None
    x = samplers.sample(guided, z, schedules.grid(schedules.make("cosine"), 2), sampler="ddim")
    assert np.isfinite(x).all()
