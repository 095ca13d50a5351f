"""No thresholding."""

import dataclasses

import jax

from imagen_jax.diffusion.thresholds.threshold import THRESHOLDS, Threshold


@THRESHOLDS.register("none")
@dataclasses.dataclass(frozen=True)
class Unlimited(Threshold):
    """Leave x_hat as it is."""

    is_identity = True

    def __call__(self, x_hat: jax.Array) -> jax.Array:
        return x_hat
