"""Inpainting and outpainting keep the known part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import editing, samplers, schedules

# --- inpainting -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_known_part_has_the_exact_marginal_at_every_level():
    """N(alpha x, sigma^2), by a deterministic and by a stochastic sampler, with resampling too."""
    num, x = 20_000, 0.6
    grid = schedules.grid(schedules.make("cosine"), 6)
    image, mask = (
        jnp.full((num, 1, 2, 1), x),
        jnp.broadcast_to(jnp.array([0.0, 1.0])[None, None, :, None], (num, 1, 2, 1)),
    )
    keys = jax.random.split(jax.random.key(0), num)
    for sampler, resample in (("dpmpp_2m", 1), (samplers.DDPM(0.0), 1), (samplers.DDIM(0.6), 1), ("ddim", 3)):
        seen = []

        def watched(z_t, logsnr_t, seen=seen):
            keep = lambda z, levels: seen.append((np.asarray(z), float(levels[0])))
            jax.debug.callback(keep, z_t, logsnr_t, ordered=True)
            return 0.5 * z_t

        painted = editing.inpainting(watched, image, mask)
        z_1 = samplers.normal(jax.random.split(jax.random.key(1), num), (1, 2, 1))
        jax.block_until_ready(
            samplers.sample(painted, z_1, grid, sampler=sampler, keys=keys, resample=resample)
        )
        jax.effects_barrier()
        assert len(seen) == 6 * resample
        for noised, level in seen:
            alpha, sigma = schedules.alpha_sigma(level)
            known = noised[:, 0, 0, 0]
            assert known.mean() == pytest.approx(float(alpha) * x, abs=4 * float(sigma) / num**0.5 + 1e-4)
            assert known.std() == pytest.approx(float(sigma), rel=0.03)


def test_outpainting_adds_borders_to_paint():
    image = jnp.ones((2, 4, 4, 3))
    larger, mask = editing.outpainting(image, left=2, bottom=1)
    assert larger.shape == (2, 5, 6, 3) and mask.shape == (2, 5, 6, 1)
    np.testing.assert_array_equal(larger[:, :4, 2:], image)
    assert mask.sum() == 2 * (5 * 6 - 16) and not mask[:, :4, 2:].any()
    with pytest.raises(ValueError, match="whole numbers from 0 to .* and not all 0"):
        editing.outpainting(image)
