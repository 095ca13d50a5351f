"""The weighted denoising loss of one noised version of each image (paper section 2.1)."""

from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax import stage
from imagen_jax.config import OBJECTIVES, StageConfig
from imagen_jax.diffusion import losses

Metrics = dict[str, tuple[jax.Array, jax.Array]]


@OBJECTIVES.register("denoising")
def denoising(config: StageConfig) -> Any:
    """Return the objective of a stage: the mean of `stage.image_losses`; metrics are the loss by log-SNR."""

    def objective(params: Any, batch: stage.Batch, draws: stage.Draws) -> tuple[jax.Array, Metrics]:
        per_image, logsnr_t = stage.image_losses(params, config, batch, draws)
        sums, counts = losses.by_logsnr(per_image, logsnr_t)
        names = [f"loss_logsnr/{bucket}" for bucket in losses.BUCKETS]
        return jnp.mean(per_image), dict(zip(names, zip(sums, counts, strict=True), strict=True))

    return objective
