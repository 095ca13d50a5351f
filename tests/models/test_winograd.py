"""3x3 convolutions in fewer multiplications."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import UNet, sharding
from imagen_jax.models import winograd
from imagen_jax.models.layers import conv3x3
from imagen_jax.planning import hlo
from tests.models.conftest import KEY, inputs, perturbed


def image_and_kernel(size=(2, 8, 12), channels=80, features=64):
    x = jax.random.normal(KEY, (*size, channels))
    return x, jax.random.normal(jax.random.key(1), (3, 3, channels, features)) / (9 * channels) ** 0.5


def plain(x, kernel):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def primitives(function, *args):
    return str(jax.make_jaxpr(function)(*args))


@pytest.mark.parametrize("size", [(1, 2, 2), (2, 8, 12), (3, 16, 16), (1, 64, 6)])
def test_agrees_with_the_textbook_in_float64(size):
    x, kernel = image_and_kernel(size)
    padded = np.pad(np.asarray(x, np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, columns = size[1:]
    k = np.asarray(kernel, np.float64)
    expected = sum(padded[:, i : i + rows, j : j + columns] @ k[i, j] for i in range(3) for j in range(3))
    error = lambda y: np.sqrt(np.mean((np.asarray(y, np.float64) - expected) ** 2))
    found = jax.jit(winograd.conv3x3)(x, kernel)
    assert found.shape == expected.shape and found.dtype == jnp.float32
    assert error(found) <= max(4 * error(plain(x, kernel)), 1e-6)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_large_batches_are_convolved_in_parts(monkeypatch):
    x, kernel = image_and_kernel((6, 8, 8))
    monkeypatch.setattr(winograd, "_MAX_BYTES", 4 * x[:4].nbytes)  # room for four, and three divide six
    compiled = jax.jit(winograd.conv3x3).lower(x, kernel).compile()
    program = hlo.read(compiled.as_text())
    products = {np.prod(each.sides) for each in program.operations if each.opcode == "dot"}
    assert products == {16 * (3 * 16) * 64}  # matrices, tiles of three images, features
    np.testing.assert_allclose(compiled(x, kernel), plain(x, kernel), atol=1e-5)


def test_derivatives_are_those_of_the_plain_convolution():
    x, kernel = image_and_kernel()
    cotangent = jax.random.normal(jax.random.key(2), (2, 8, 12, 64))
    (y, gradients), (expected, wanted) = (jax.vjp(conv, x, kernel) for conv in (winograd.conv3x3, plain))
    np.testing.assert_array_equal(y, expected)
    jax.tree.map(np.testing.assert_array_equal, gradients(cotangent), wanted(cotangent))
    found, expected = (jax.jvp(conv, (x, kernel), (x + 1, kernel)) for conv in (winograd.conv3x3, plain))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_only_programs_for_cpus_have_the_matrix_products():
    x, kernel = image_and_kernel()
    text = {name: jax.export.export(jax.jit(winograd.conv3x3), platforms=[name])(x, kernel).mlir_module()
            for name in ("tpu", "cuda", "rocm")}  # fmt: skip
    assert all("convolution" in each and "dot_general" not in each for each in text.values())
    program = hlo.read(jax.jit(winograd.conv3x3).lower(x, kernel).compile().as_text())
    opcodes = {each.opcode for each in program.operations}
    assert "convolution" not in opcodes and "conditional" not in opcodes
    tiles, (channels, features) = 2 * 4 * 6, kernel.shape[2:]
    assert program.flops_by_kind() == {hlo.FORWARD: 2 * 16 * tiles * channels * features}


@pytest.mark.parametrize(
    ("size", "channels", "features", "dtype", "stride"),
    [
        ((4, 63, 64), 64, 64, jnp.float32, 1),  # an odd side
        ((4, 64, 63), 64, 64, jnp.float32, 1),
        ((4, 64, 64), 64, 64, jnp.bfloat16, 1),  # differences would lose digits
        ((4, 64, 64), 64, 64, jnp.float32, 2),
        ((16, 128, 128), 3, 128, jnp.float32, 1),
        ((16, 128, 128), 128, 3, jnp.float32, 1),
        ((4, 16, 16), 64, 64, jnp.float32, 1),  # quick as it is
    ],
)
def test_others_are_convolved_as_before(size, channels, features, dtype, stride):
    x = jax.ShapeDtypeStruct((*size, channels), dtype)
    conv = conv3x3(features, dtype, None, stride)
    params = jax.eval_shape(conv.init, KEY, x)
    assert "custom_jvp" not in primitives(conv.apply, params, x)
    x, conv = jax.ShapeDtypeStruct((4, 64, 64, 64), jnp.float32), conv3x3(64, jnp.float32, None)
    assert "custom_jvp" in primitives(conv.apply, jax.eval_shape(conv.init, KEY, x), x)


def test_networks_on_several_devices_convolve_as_before():
    x = jax.ShapeDtypeStruct((8, 64, 64, 64), jnp.float32)
    conv = conv3x3(64, jnp.float32, None)
    params = jax.eval_shape(conv.init, KEY, x)
    assert "custom_jvp" in primitives(conv.apply, params, x)
    one, all_of_them = (sharding.make_mesh(devices=devices) for devices in (jax.devices()[:1], None))
    for mesh, is_used in ((one, True), (all_of_them, False)):
        with sharding.use_mesh(mesh):
            assert ("custom_jvp" in primitives(conv.apply, params, x)) == is_used


def test_a_network_predicts_the_same(monkeypatch):
    network = UNet(channels=(64, 64), num_res_blocks=(1, 1), attention=(False, True), embedding=32, head_dim=32)
    monkeypatch.setattr(winograd, "_MIN_FLOPS", 1e8)
    args = inputs("base", size=32)
    params = jax.tree.map(lambda leaf: leaf / 4, perturbed(network, *args))
    assert "custom_jvp" in primitives(network.apply, params, *args)
    found = jax.jit(network.apply)(params, *args)
    monkeypatch.setattr(winograd, "pays", lambda x, kernel: False)
    expected = jax.jit(lambda *args: network.apply(*args))(params, *args)
    np.testing.assert_allclose(found, expected, atol=2e-5 * float(jnp.abs(expected).max()))
    assert not np.array_equal(found, expected)
