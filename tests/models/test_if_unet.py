import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from imagen_jax.models.if_unet import RELEASED, IFUNet, IFUNetConfig
from imagen_jax.models.network import NETWORKS
from imagen_jax.structs import Cond
from tests.models.conftest import apply, perturbed, text_cond

SMALL = IFUNetConfig((8, 16), (1, 1), (False, True), 16, 32, head_dim=8, pool_heads=2, groups=4)


def inputs():
    z_t = jax.random.normal(jax.random.key(2), (2, 4, 6, 3))
    return z_t, jnp.array([0.004, 1.0]), Cond(text_cond(), z_t * 0.5, jnp.array([0.251, 0.001]))


def test_a_configuration_builds_its_module():
    built = SMALL.build(out_channels=6, dtype=jnp.bfloat16, scan=True, remat="full")
    assert type(built) is IFUNet and NETWORKS["if_unet"] is IFUNetConfig and SMALL.stride == 2
    assert (built.out_channels, built.dtype, built.scan, built.remat) == (6, jnp.bfloat16, True, "full")
    assert IFUNetConfig.of(built) == SMALL
    for config in RELEASED.values():
        config.check()


@pytest.mark.slow
def test_every_parameter_and_every_token_matters():
    """Padding too: IF was trained without a mask of the text."""
    network, args = SMALL.build(out_channels=6, dtype=jnp.float32, scan=False, remat="none"), inputs()
    params = perturbed(network, *args)
    loss = lambda params, args: jnp.sum(network.apply(params, *args) ** 2)
    of_params, (of_z, of_time, of_cond) = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))(params, args)
    gradients = flatten_dict(of_params, sep="/") | {"z_t": of_z, "low_res": of_cond.low_res_noised}
    dead = [key for key, gradient in gradients.items() if not np.abs(gradient).max() > 0]
    assert all(key.endswith("/text_pool/key/bias") for key in dead)  # shifts all logits of its softmax alike
    assert (np.abs(of_cond.text.embeddings).max(axis=-1) > 0).all()


@pytest.mark.slow
def test_scanned_and_rematerialised_blocks_compute_the_same():
    config, args = dataclasses.replace(SMALL, num_res_blocks=(3, 1)), inputs()
    plain, scanned = (
        config.build(out_channels=6, dtype=jnp.float32, scan=on, remat="full" if on else "none") for on in (False, True)
    )
    params = perturbed(plain, *args)
    np.testing.assert_allclose(apply(scanned, params, *args), apply(plain, params, *args), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": (8, 12)}, r"network.channels must be multiples of head_dim 8 where attention is on; got \[12\]"),
        ({"channels": (6, 16)}, r"network.channels must be multiples of groups 4; got \[6\]"),
        ({"channels": (5, 16), "groups": 1}, r"network.channels\[0\] must be even; got 5"),
        ({"num_res_blocks": (1,)}, "network.num_res_blocks must have one entry for each of the 2 levels"),
        ({"text_width": 48}, "network.text_width must be a multiple of 32; got 48"),
        ({"rescale": 0.0}, "network.rescale must be in .0, 1000.; got 0.0"),
        ({"pool_heads": 0}, "network.pool_heads must be at least 1; got 0"),
    ],
)
def test_networks_that_cannot_be_built_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **changes).check("network.")


def test_texts_that_the_heads_do_not_divide_are_refused():
    network, (z_t, time, cond) = SMALL.build(out_channels=6, dtype=jnp.float32, scan=False, remat="none"), inputs()
    odd = cond.replace(text=text_cond(width=13))
    with pytest.raises(ValueError, match="cond.text must have a width that is a multiple of the 2 heads that pool it"):
        jax.eval_shape(network.init, jax.random.key(0), z_t, time, odd)
