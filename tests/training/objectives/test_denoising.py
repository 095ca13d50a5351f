"""The denoising loss of a batch is the mean over its images, and it is counted by level."""

import jax
import numpy as np
import pytest

from imagen_jax import stage
from imagen_jax.diffusion import losses
from imagen_jax.training.objectives import OBJECTIVES


@pytest.mark.slow
def test_denoising_is_the_mean_loss_and_the_loss_by_level(tiny_stages, tiny_batch):
    config, params = tiny_stages[1].config, tiny_stages[1].params
    draws = stage.draw(config, jax.random.key(0), 8)
    loss, metrics = jax.jit(OBJECTIVES["denoising"](config))(params, tiny_batch, draws)
    per_image, logsnr_t = jax.jit(stage.image_losses, static_argnums=1)(params, config, tiny_batch, draws)
    np.testing.assert_allclose(loss, np.mean(per_image), rtol=1e-6)
    sums, counts = losses.by_logsnr(per_image, logsnr_t)
    found = [metrics[f"loss_logsnr/{bucket}"] for bucket in losses.BUCKETS]
    np.testing.assert_allclose(found, np.stack([sums, counts], axis=1), rtol=1e-6)
