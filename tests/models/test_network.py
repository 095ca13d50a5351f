import dataclasses

import jax.numpy as jnp
import pytest

from imagen_jax import EfficientUNet, UNet
from imagen_jax.models.efficient_unet import EfficientUNetConfig
from imagen_jax.models.network import NETWORKS, NetworkConfig
from imagen_jax.models.unet import UNetConfig


@dataclasses.dataclass(frozen=True)
class Small(NetworkConfig):
    width: int = 8
    rate: float = 0.5


@pytest.mark.parametrize(("name", "config", "module"), [
    ("unet", UNetConfig((8,), (1,), (True,), embedding=8, head_dim=8), UNet),
    ("efficient_unet", EfficientUNetConfig(8, (8, 8), (1, 1), (False,) * 2, (False,) * 2, embedding=8), EfficientUNet),
])  # fmt: skip
def test_a_configuration_builds_its_module(name, config, module):
    built = config.build(out_channels=4, dtype=jnp.bfloat16, scan=True, remat="full")
    assert type(built) is module and NETWORKS[name] is type(config)
    assert (built.out_channels, built.dtype, built.scan, built.remat) == (4, jnp.bfloat16, True, "full")
    assert type(config).of(built) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (Small(width=8.0), "network.width must be a whole number from 0 to 1000000000; got 8.0"),
        (Small(rate="high"), "network.rate must be a finite number; got 'high'"),
    ],
)
def test_types_of_fields_are_checked_unless_a_network_checks_more(config, message):
    Small().check()
    with pytest.raises(ValueError, match=message):
        config.check("network.")
