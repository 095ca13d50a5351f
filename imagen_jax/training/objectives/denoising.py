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
    """Return the objective of a stage: the mean of `stage.image_losses`; metrics are the loss by log-SNR.

    Where a batch has "weight" [B], the mean is of weighted losses (prior preservation).
    """

    def objective(params: Any, batch: stage.Batch, draws: stage.Draws) -> tuple[jax.Array, Metrics]:
        per_image, logsnr_t = stage.image_losses(params, config, batch, draws)
        return mean_and_metrics(per_image, logsnr_t, batch.get("weight", 1))

    return objective


def mean_and_metrics(
    per_image: jax.Array, logsnr_t: jax.Array, weight: jax.Array | float = 1
) -> tuple[jax.Array, Metrics]:
    """Return the mean of the weighted losses [B] at logsnr_t [B]; metrics are the plain ones by log-SNR."""
    sums, counts = losses.by_logsnr(per_image, logsnr_t)
    names = [f"loss_logsnr/{bucket}" for bucket in losses.BUCKETS]
    return jnp.mean(weight * per_image), dict(zip(names, zip(sums, counts, strict=True), strict=True))
