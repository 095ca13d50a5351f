"""What a sampler is, and the registry of samplers."""

import abc
import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from imagen_jax.diffusion.denoisers import DenoiseFn
from imagen_jax.diffusion.schedules import LOGSNR_MAX, LOGSNR_MIN
from imagen_jax.methods import Method, option
from imagen_jax.registry import Registry

SAMPLERS = Registry("sampler")


class Step(NamedTuple):
    """What a sampler is given for one step.

    Attributes:
      z_t, x_hat: [B, H, W, C] float32.
      noise_x: [B, H, W, C] from which to take eps_hat: x_hat, unless the denoiser says otherwise.
      log_variance: see `Estimate`; None if the denoiser does not estimate it.
      logsnr_t, logsnr_s: scalars, s < t.
      index: place on the grid, 0, 1, ..., T - 1.
      is_first: there is no earlier step to extrapolate from.
      is_last: the step goes to the last level.
      noise: standard normal like z_t for stochastic samplers, else None.
      denoise: (z_t, logsnr_t) -> x_hat, for further evaluations.
    """

    z_t: jax.Array
    x_hat: jax.Array
    noise_x: jax.Array
    log_variance: jax.Array | None
    logsnr_t: jax.Array
    logsnr_s: jax.Array
    index: jax.Array
    is_first: jax.Array
    is_last: jax.Array
    noise: jax.Array | None
    denoise: DenoiseFn


@dataclasses.dataclass(frozen=True)
class Sampler(Method, abc.ABC):
    """A step from one level of noise to the next. Its fields are its options.

    A sampler sees the model only as a denoiser; guidance and thresholding are already inside it, so every update is
    written in x_hat, from which eps follows. h stands for a step of log(alpha / sigma), half the step of logsnr.
    """

    final_logsnr: float = option(LOGSNR_MAX, f"[{LOGSNR_MIN:g}, {LOGSNR_MAX:g}]", kw_only=True)
    """log-SNR at which the finished image, without noise, is denoised once more, which smooths grain, the more the
    lower it is; 20 is off."""

    is_stochastic = False
    """Whether it uses `Step.noise`; it then needs keys. Its last step must add none."""
    reads_noise_x = False
    """Whether eps_hat is taken from `Step.noise_x`, as CFG++ requires."""
    off_grid = ""
    """Name of the option by which it evaluates the model at levels between those of the grid; "" if it does not."""

    @property
    def has_final(self) -> bool:
        """Whether the finished image is denoised once more."""
        return self.final_logsnr < LOGSNR_MAX

    @abc.abstractmethod
    def step(self, s: Step, carry: Any) -> tuple[jax.Array, Any]:
        """Return (z_s [B, H, W, C], what the next step is given as `carry`)."""

    def init(self, z_1: jax.Array, logsnr_grid: jax.Array) -> Any:
        """Return the first `carry`, a pytree of arrays."""
        return ()

    def add_noise(
        self, z_t: jax.Array, logsnr_t: jax.Array, noise: jax.Array, steps: int
    ) -> tuple[jax.Array, jax.Array]:
        """Return (z_t, logsnr_t) at the level, as noisy or noisier, at which the model is evaluated."""
        return z_t, logsnr_t

    def corrected(self, logsnr_grid: np.ndarray) -> np.ndarray:
        """[T] bool: which steps evaluate the model a second time, at the level that they lead to."""
        return np.zeros(len(logsnr_grid) - 1, bool)
