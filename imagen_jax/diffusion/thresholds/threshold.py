"""What a threshold is, and the registry of thresholds."""

import abc
import dataclasses

import jax

from imagen_jax.methods import Method
from imagen_jax.registry import Registry

THRESHOLDS = Registry("threshold")


@dataclasses.dataclass(frozen=True)
class Threshold(Method, abc.ABC):
    """How estimates are kept in the range of images, for each image by itself."""

    is_identity = False
    """Whether it changes nothing."""

    @abc.abstractmethod
    def __call__(self, x_hat: jax.Array) -> jax.Array:
        """Return x_hat [B, H, W, C] in range."""
