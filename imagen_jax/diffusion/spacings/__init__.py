"""Spacings of the noise levels that a sampler visits: dataclasses of their options, one in a file."""

from imagen_jax.diffusion.spacings.logsnr import LogSNR
from imagen_jax.diffusion.spacings.rho import Rho
from imagen_jax.diffusion.spacings.spacing import SPACINGS, Spacing
from imagen_jax.diffusion.spacings.time import Time
from imagen_jax.diffusion.spacings.trailing import Trailing

from imagen_jax.diffusion.spacings.respaced import RESPACINGS, Respaced  # isort: skip

__all__ = ["RESPACINGS", "SPACINGS", "LogSNR", "Respaced", "Rho", "Spacing", "Time", "Trailing"]
