"""Dynamic thresholding (paper section 2.3)."""

import dataclasses

import jax

from imagen_jax.checks import require
from imagen_jax.diffusion import thresholding
from imagen_jax.diffusion.thresholds.threshold import THRESHOLDS, Threshold
from imagen_jax.methods import option


@THRESHOLDS.register("dynamic")
@dataclasses.dataclass(frozen=True)
class Dynamic(Threshold):
    """Clip x_hat to [-s, s] and divide by s, a percentile of |x_hat|: `thresholding.dynamic`."""

    percentile: float = option(0.995, "(0, 1]")
    """share of the absolute values below the threshold, in (0, 1]."""
    floor: float = option(1.0, "(0, 1e+06]")
    """lower bound of the threshold."""
    cap: float | None = option(None, "(0, 1e+06]")
    """upper bound of the threshold."""

    def check(self) -> None:
        super().check()
        require(self.cap is None or self.cap >= self.floor, "cap", f"be at least floor ({self.floor:g})", self.cap)

    def __call__(self, x_hat: jax.Array) -> jax.Array:
        return thresholding.dynamic(x_hat, self.percentile, self.cap, self.floor)
