import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import sharding
from imagen_jax.models import patches
from imagen_jax.models.layers import InputConv
from tests.models.conftest import KEY, MODULES, inputs, perturbed


@pytest.mark.parametrize("transform", ["space_to_depth", "haar"])
@pytest.mark.parametrize("patch_size", [1, 2, 16])
def test_patches_are_an_orthonormal_map_with_an_exact_inverse(transform, patch_size):
    p = patch_size
    there, back = (
        jax.jit(functools.partial(function, patch_size=p, transform=transform))
        for function in (patches.patchify, patches.unpatchify)
    )
    matrix = np.asarray(there(np.eye(p * p, dtype="float32").reshape(p * p, p, p, 1))).reshape(p * p, p * p)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(p * p), atol=1e-6)
    x = np.random.default_rng(0).normal(size=(3, 2 * p, 5 * p, 2)).astype("float32")
    for dtype, tolerance in ((jnp.float32, 1e-6), (jnp.bfloat16, 0.05)):
        images = jnp.asarray(x, dtype)
        made = there(images)
        assert made.shape == (3, 2, 5, 2 * p * p) and made.dtype == dtype
        again = back(made)
        assert again.dtype == dtype
        tolerance = 0 if transform == "space_to_depth" or p == 1 else tolerance
        np.testing.assert_allclose(np.float32(again), np.float32(images), rtol=0, atol=tolerance)
        energy = [np.sum(np.square(np.float64(a)), axis=(1, 2, 3)) for a in (made, images)]
        np.testing.assert_allclose(*energy, rtol=1e-6 if dtype == jnp.float32 else 1e-2)


def test_space_to_depth_is_a_patch_row_by_row():
    x = jnp.arange(4 * 6 * 2).reshape(1, 4, 6, 2)
    made = patches.patchify(x, 2, "space_to_depth")
    np.testing.assert_array_equal(made[0, 1, 2], x[0, 2:, 4:].ravel())


def test_haar_coefficients_are_means_and_differences_by_level():
    """Of a 4x4 patch: 4 times the mean, then differences of 2x2 means, then those of pixels."""
    x = np.zeros((2, 4, 4, 1), "float32")
    x[:, :2, :2] = 1  # one quadrant: no detail at the finest level
    x[1, 2, 2] = 8  # the first pixel of the last quadrant
    made = jax.jit(patches.patchify, static_argnums=(1, 2))(x, 4, "haar").reshape(2, 16)
    np.testing.assert_allclose(made, [[1, 1, 1, 1, *12 * [0]], [3, -1, -1, 3, *9 * [0], 4, 4, 4]])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "transform"), [("base", "haar"), ("efficient", "space_to_depth")])
def test_a_network_of_patches_is_the_network_between_the_transforms(name, transform):
    """The same parameters as a network of images with p^2 times the channels, scanned and rematerialised as well."""
    flat = {"base": {"attention": (True,)}, "efficient": {"self_attention": (True,), "cross_attention": (False,)}}
    inner = dataclasses.replace(MODULES[name], channels=(8,), num_res_blocks=(2,), out_channels=12, **flat[name])
    patched = dataclasses.replace(inner, out_channels=3, patch_size=2, patch_transform=transform)
    z_t, logsnr, cond = inputs(name)
    if name == "base":
        cond = cond.replace(control=z_t[..., :1] * 2)
    split = lambda a: None if a is None else patches.patchify(a, 2, transform)
    small = split(z_t), logsnr, cond.replace(low_res_noised=split(cond.low_res_noised), control=split(cond.control))
    params = perturbed(inner, *small)
    shapes = jax.eval_shape(patched.init, KEY, z_t, logsnr, cond)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)
    scanned = dataclasses.replace(patched, scan=True, remat="full")

    @jax.jit
    def outputs(params):
        out, features = patched.apply(params, z_t, logsnr, cond, mutable=["features"])
        cached = scanned.apply({**params, **features}, z_t, logsnr, cond)
        return patches.unpatchify(inner.apply(params, *small), 2, transform), out, cached

    expected, *others = outputs(params)
    for out in others:
        assert out.shape == z_t.shape and out.dtype == jnp.float32
        np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("height", "patch_size"), [(4, 2), (8, 8)])
def test_patches_of_images_whose_rows_are_split_over_devices(height, patch_size):
    """Also where there are fewer rows of patches than devices."""
    mesh = sharding.make_mesh(height=height)
    x = jax.random.normal(KEY, (2, 16, 16, 3))
    module = InputConv(12, jnp.float32, patch_size, "haar")
    params = module.init(KEY, x, x)

    def through(params, x):
        x = sharding.constrain_images(x)
        h = sharding.constrain_activations(module.apply(params, x, x))
        return patches.unpatchify(jnp.repeat(h, patch_size**2, -1), patch_size, "haar")

    expected = jax.jit(through)(params, x)
    with jax.set_mesh(mesh):
        out = jax.jit(through)(*sharding.replicate((params, x), mesh))
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *[({"patch_size": p}, f"network.patch_size must be one of 1, 2, 4, 8, 16; got {p}") for p in (0, 3, 32, True)],
        ({"patch_size": 2.0}, "network.patch_size must be one of 1, 2, 4, 8, 16; got 2.0"),
        ({"patch_transform": "dct"}, "network.patch_transform must be one of space_to_depth, haar; got 'dct'"),
    ],
)
def test_other_patches_are_refused(tiny_configs, change, message):
    for config in tiny_configs:
        with pytest.raises(ValueError, match=message):
            dataclasses.replace(config.network, **change).check("network.")
