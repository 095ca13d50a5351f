"""Thresholds: dataclasses of their options, one in a file; `diffusion.thresholding` has the arithmetic."""

from imagen_jax.diffusion.thresholds.dynamic import Dynamic
from imagen_jax.diffusion.thresholds.static import Static
from imagen_jax.diffusion.thresholds.threshold import THRESHOLDS, Threshold
from imagen_jax.diffusion.thresholds.unlimited import Unlimited

__all__ = ["THRESHOLDS", "Dynamic", "Static", "Threshold", "Unlimited"]
