"""What a guidance rule is, and the registry of rules."""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.checks import Verbatim, instance, require
from imagen_jax.diffusion.denoisers import Estimate
from imagen_jax.methods import Method, option
from imagen_jax.registry import Registry

RULES = Registry("guidance")


@dataclasses.dataclass(frozen=True)
class Rule(Method, abc.ABC):
    """How x_cond, the estimate that follows the prompt, and x_null, one that does so less, become one."""

    is_off_at_one = True
    """Whether a scale of 1 gives x_cond alone; x_null is not computed then."""
    has_state = False
    """Whether `init` gives a state that is carried from step to step."""
    gives_noise_x = False
    """Whether it returns an `Estimate` with noise_x, for samplers that read it."""
    scale_interval = "[-1000, 1000]"
    """The scales that it is defined for, as for `checks.number`."""

    @abc.abstractmethod
    def combine(self, x_cond: jax.Array, x_null: jax.Array, w: jax.Array, state: Any) -> tuple[Any, Any]:
        """Return (x_hat [B, H, W, C] or `Estimate`, state) for the scale w [B, 1, 1, 1]."""

    def init(self, z_1: jax.Array) -> Any:
        """Return the first state, a pytree of arrays."""
        return ()


@dataclasses.dataclass(frozen=True)
class Rescaled(Rule):
    """`rule`, with `share` of its result brought to x_cond's contrast in each image (Lin et al. 2023, equation 15)."""

    rule: Rule
    """the rule; one that returns x_hat alone."""
    share: float = option(0.7, "[0, 1]")
    """share of the result that is rescaled."""

    def check(self) -> None:
        instance("rule", self.rule, Rule, "a Rule, such as CFG()")
        rule = "be one that returns x_hat alone"
        require(not self.rule.gives_noise_x, "rule", rule, Verbatim(type(self.rule).__name__))
        super().check()

    @property
    def has_state(self) -> bool:
        return self.rule.has_state

    @property
    def is_off_at_one(self) -> bool:
        return self.rule.is_off_at_one

    def init(self, z_1: jax.Array) -> Any:
        return self.rule.init(z_1)

    def combine(self, x_cond: jax.Array, x_null: jax.Array, w: jax.Array, state: Any) -> tuple[Any, Any]:
        x_hat, state = self.rule.combine(x_cond, x_null, w, state)
        rule = "return x_hat alone to be rescaled; a Rule with gives_noise_x False"
        require(not isinstance(x_hat, Estimate), "rule", rule, self.rule)
        factor = _std(x_cond) / jnp.maximum(_std(x_hat), 1e-12)
        return x_hat * (self.share * factor + 1 - self.share), state


def mean(x: jax.Array) -> jax.Array:
    """Return the mean of each image: [B, H, W, C] -> [B, 1, 1, 1]."""
    return jnp.mean(x, axis=tuple(range(1, x.ndim)), keepdims=True)


def _std(x: jax.Array) -> jax.Array:
    return jnp.sqrt(mean((x - mean(x)) ** 2))
