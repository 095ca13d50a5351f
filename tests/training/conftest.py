"""The metrics of a training step."""

import jax
import numpy as np

from imagen_jax.diffusion import losses


def metrics(loss, logsnr, skipped=0):
    """The metrics of a step with one image of each of these losses and levels."""
    sums, counts = losses.by_logsnr(jax.numpy.asarray(loss, "float32"), jax.numpy.asarray(logsnr, "float32"))
    names = [f"loss_logsnr/{bucket}" for bucket in losses.BUCKETS]
    scalars = {"grad_norm": 1.0, "learning_rate": 0.1, "ema_distance": 0.5}
    return scalars | {
        "loss": jax.numpy.asarray(np.mean(loss)),
        "skipped": skipped,
        "sums": dict(zip(names, zip(sums, counts, strict=True), strict=True)),
    }
