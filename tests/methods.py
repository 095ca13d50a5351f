"""Methods of sampling from outside the package."""

import dataclasses

import jax.numpy as jnp

from imagen_jax.diffusion import guidance, samplers, thresholds
from imagen_jax.methods import option


@dataclasses.dataclass(frozen=True)
class Eager(samplers.Sampler):
    """Goes a share of the way to x_hat in each step."""

    gain: float = option(0.5, "[0, 1]", flat="eager_gain")
    """share of the way."""

    def step(self, s, carry):
        return s.z_t + self.gain * (s.x_hat - s.z_t), carry


@dataclasses.dataclass(frozen=True)
class Flat(guidance.Rule):
    """Linear guidance whose result is scaled."""

    flat_share: float = option(1.0, "(0, 1]")
    """factor on the result."""

    def combine(self, x_cond, x_null, w, state):
        return self.flat_share * (x_null + w * (x_cond - x_null)), state


@dataclasses.dataclass(frozen=True)
class Tight(thresholds.Threshold):
    """Clips to a bound."""

    bound: float = option(0.25, "(0, 1]")
    """the bound."""

    def __call__(self, x_hat):
        return jnp.clip(x_hat, -self.bound, self.bound)


OPTIONS = {
    "sampler": "mine", "eager_gain": 0.3, "guidance": "mine", "flat_share": 0.5, "threshold": "mine", "bound": 0.2,
    "steps": 2, "guidance_scale": 2.0,
}  # fmt: skip
