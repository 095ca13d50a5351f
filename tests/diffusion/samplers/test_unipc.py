"""UniPC of order 3."""

import jax.numpy as jnp

from imagen_jax.diffusion import samplers
from tests.diffusion.gaussian import (
    error,
)


def test_unipc_order_3_is_at_the_limit_of_float32_in_few_steps():
    errors = [error(samplers.UniPC(order), jnp.linspace(-6, 6, 21)) for order in (1, 2, 3)]
    assert errors[2] < 5e-4 and errors[1] < errors[0] / 5
