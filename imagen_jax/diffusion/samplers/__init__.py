"""Samplers: one scan over a grid of log-SNRs, in which each sampler is a small step function in a file of its own."""

from typing import Any

from imagen_jax import methods
from imagen_jax.diffusion.samplers.ddim import DDIM
from imagen_jax.diffusion.samplers.ddpm import DDPM
from imagen_jax.diffusion.samplers.dpmpp_2m import DPMpp2M, DPMpp2MSDE
from imagen_jax.diffusion.samplers.heun import Heun
from imagen_jax.diffusion.samplers.sampler import SAMPLERS, Sampler, Step
from imagen_jax.diffusion.samplers.scan import Info, check_grid, normal, sample
from imagen_jax.diffusion.samplers.unipc import UniPC

__all__ = [
    "DDIM", "DDPM", "SAMPLERS", "DPMpp2M", "DPMpp2MSDE", "Heun", "Info", "Sampler", "Step", "UniPC", "check_grid",
    "make", "normal", "sample",
]  # fmt: skip


def make(name: str, **options: Any) -> Sampler:
    """Return the sampler called `name`, with options of its own such as gamma for ddpm.

    Raises:
      ValueError: there is no such sampler, or an option is unknown, of a wrong type or out of range.
    """
    return methods.make(SAMPLERS, name, options)
