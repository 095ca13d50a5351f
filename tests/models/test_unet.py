"""The base network: its shapes, and where it attends."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from imagen_jax.models.unet import UNetConfig
from tests.models.conftest import inputs

CONFIG = UNetConfig(channels=(8, 16), num_res_blocks=(1, 1), attention=(False, True), embedding=32, head_dim=8)


def shapes(config, out_channels=3):
    """Shapes of the parameters and of the output for pictures of 8x8; nothing is computed."""
    network = config.build(out_channels=out_channels, dtype=jnp.float32, scan=False, remat="none")
    return jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), *inputs("base")))


def test_attention_is_where_the_configuration_has_it():
    def num_attending(config):
        _, variables = shapes(config)
        return sum("attention" in "/".join(path).lower() for path in flatten_dict(variables["params"]))

    assert num_attending(dataclasses.replace(CONFIG, attention=(False, False))) == 0
    assert 0 < num_attending(CONFIG) < num_attending(dataclasses.replace(CONFIG, attention=(True, True)))


def test_the_output_has_the_channels_that_are_asked_for():
    assert CONFIG.stride == 2
    assert shapes(CONFIG, out_channels=6)[0].shape == (2, 8, 8, 6)


def test_channels_are_multiples_of_a_head():
    with pytest.raises(ValueError, match=r"^network.channels must be multiples of head_dim 8 .*; got \[12\]"):
        dataclasses.replace(CONFIG, channels=(4, 12)).check("network.")
