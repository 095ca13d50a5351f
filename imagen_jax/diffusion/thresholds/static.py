"""Static thresholding (paper section 2.3)."""

import dataclasses

import jax

from imagen_jax.diffusion import thresholding
from imagen_jax.diffusion.thresholds.threshold import THRESHOLDS, Threshold


@THRESHOLDS.register("static")
@dataclasses.dataclass(frozen=True)
class Static(Threshold):
    """Clip x_hat to [-1, 1]."""

    def __call__(self, x_hat: jax.Array) -> jax.Array:
        return thresholding.static(x_hat)
