"""Equal steps of log-SNR."""

import dataclasses

import jax

from imagen_jax.diffusion.spacings.spacing import SPACINGS, SigmaSpacing


@SPACINGS.register("logsnr")
@dataclasses.dataclass(frozen=True)
class LogSNR(SigmaSpacing):
    """T equally spaced logsnr and then a clean level."""

    def between(self, low: jax.Array, high: jax.Array, place: jax.Array) -> jax.Array:
        return low + place * (high - low)
