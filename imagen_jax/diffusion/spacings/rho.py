"""EDM's spacing (Karras et al. 2022)."""

import dataclasses

import jax
import jax.numpy as jnp

from imagen_jax.diffusion.spacings.spacing import SPACINGS, SigmaSpacing
from imagen_jax.methods import option


@SPACINGS.register("rho")
@dataclasses.dataclass(frozen=True)
class Rho(SigmaSpacing):
    """T levels with S^(1/rho) equally spaced, S = sigma / alpha, and then a clean level (Karras et al. 2022, eq. 5)."""

    rho: float = option(7.0, "[0.1, 1000]")
    """EDM's exponent; larger puts more steps at low noise."""

    def between(self, low: jax.Array, high: jax.Array, place: jax.Array) -> jax.Array:
        noisy, clean = jnp.exp(-low / (2 * self.rho)), jnp.exp(-high / (2 * self.rho))
        return -2 * self.rho * jnp.log(noisy + place * (clean - noisy))
