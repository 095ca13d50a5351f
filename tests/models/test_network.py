import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from imagen_jax import EfficientUNet, UNet
from imagen_jax.models.efficient_unet import EfficientUNetConfig
from imagen_jax.models.network import NETWORKS, NetworkConfig
from imagen_jax.models.unet import UNetConfig
from imagen_jax.structs import TextCond
from tests.models.conftest import MODULES, apply, init, inputs, perturbed


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


# --- Every network ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODULES))
def test_output_is_zero_at_initialisation_with_the_shape_of_the_image(name):
    network, args = MODULES[name], inputs(name)
    out = apply(network, init(network, *args), *args)
    np.testing.assert_array_equal(out, jnp.zeros_like(args[0]))
    assert out.dtype == jnp.float32


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODULES))
def test_every_input_and_every_parameter_matters(name):
    network, args = MODULES[name], inputs(name)
    params = perturbed(network, *args)
    loss = lambda params, args: jnp.sum(network.apply(params, *args) ** 2)
    gradient = jax.jit(jax.grad(loss, argnums=(0, 1), allow_int=True))
    of_params, (of_z, of_logsnr, of_cond) = gradient(params, args)
    gradients = flatten_dict(of_params, sep="/") | {"z_t": of_z, "logsnr_t": of_logsnr}
    gradients |= {"text": of_cond.text.embeddings, "low_res_noised": of_cond.low_res_noised, "aug": of_cond.aug_logsnr}
    # A key's bias shifts all logits alike, so softmax ignores that part; its weights are in one array.
    dead = [k for k, g in gradients.items() if g is not None and not np.abs(g).max() > 0]
    assert all(key.endswith("/key/bias") for key in dead), dead


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODULES))
def test_padding_of_the_text_does_not_matter(name):
    network, (z_t, logsnr, cond) = MODULES[name], inputs(name)
    params = perturbed(network, z_t, logsnr, cond)
    out = apply(network, params, z_t, logsnr, cond)
    garbage = jnp.where(cond.text.mask[..., None], cond.text.embeddings, 100.0)
    longer = TextCond(
        jnp.pad(garbage, ((0, 0), (0, 4), (0, 0)), constant_values=-7.0),
        jnp.pad(cond.text.mask, ((0, 0), (0, 4))),
    )
    np.testing.assert_allclose(
        apply(network, params, z_t, logsnr, cond.replace(text=longer)), out, rtol=1e-4, atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODULES))
def test_images_of_a_batch_are_independent_and_need_not_be_square(name):
    network, (z_t, logsnr, cond) = MODULES[name], inputs(name)
    params = perturbed(network, z_t, logsnr, cond)
    wide = lambda a: None if a is None else jnp.concatenate([a, a], axis=2)
    args = wide(z_t), logsnr, cond.replace(low_res_noised=wide(cond.low_res_noised))
    out = apply(network, params, *args)
    alone = apply(network, params, *jax.tree.map(lambda a: a[1:], args))
    assert out.shape == (2, 8, 16, 3)
    np.testing.assert_allclose(out[1:], alone, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODULES))
def test_bfloat16_computes_the_same_within_its_precision(name):
    network, args = MODULES[name], inputs(name)
    params = perturbed(network, *args)
    half = dataclasses.replace(network, dtype=jnp.bfloat16)
    assert jax.tree.leaves(init(half, *args))[0].dtype == jnp.float32
    exact, rough = apply(network, params, *args), apply(half, params, *args)
    assert jnp.linalg.norm(exact - rough) < 0.05 * jnp.linalg.norm(exact)
