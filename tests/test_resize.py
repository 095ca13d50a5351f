"""Area averaging and bilinear interpolation: exact where known, equal in numpy and jax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from imagen_jax import resize

SIDES = st.integers(1, 24)


def picture(*shape, seed=0):
    return np.random.default_rng(seed).random(shape, np.float32)


@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_every_matrix_averages(h_in, h_out, w_in, w_out):
    weights = resize.matrix(h_in, h_out)
    assert weights.shape == (h_out, h_in) and weights.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-6)
    # Every old pixel counts equally in area averaging, so the mean of the picture is kept.
    small, large = sorted((w_in, w_out))
    np.testing.assert_allclose(resize.matrix(large, small).sum(0), small / large, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_numpy_is_the_matrix_product(a, b, c, d):
    big, small = (max(a, b), max(c, d)), (min(a, b), min(c, d))
    for function, old, new in ((resize.area, big, small), (resize.bilinear, small, big)):
        x = picture(2, *old, 3)
        rows, columns = (resize.matrix(i, o) for i, o in zip(old, new, strict=True))
        expected = np.einsum("ph,qw,bhwc->bpqc", rows, columns, x)
        np.testing.assert_allclose(function(x, new), expected, atol=2e-6)


@pytest.mark.parametrize("shape, size", [((12, 20, 3), (5, 9)), ((2, 16, 16, 3), 7)])
def test_numpy_equals_jax(shape, size):
    x = picture(*shape)
    small, small_jax = resize.area(x, size), jax.jit(lambda x: resize.area(x, size))(x)
    assert isinstance(small, np.ndarray) and isinstance(small_jax, jax.Array)
    np.testing.assert_allclose(small, small_jax, atol=1e-6)
    back, back_jax = resize.bilinear(small, shape[-3:-1]), resize.bilinear(small_jax, shape[-3:-1])
    np.testing.assert_allclose(back, back_jax, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(SIDES, SIDES, SIDES, SIDES)
def test_each_side_as_it_needs(a, b, c, d):
    x = picture(2, a, b, 3)
    smaller = min(a, c), min(b, d)
    expected = resize.bilinear(resize.area(x, smaller), (c, d))
    np.testing.assert_allclose(resize.to_size(x, (c, d)), expected, atol=2e-6)


@pytest.mark.parametrize("size", [(5, 31), (20, 20), (9, 12)])
def test_parts_are_slices_of_the_whole_and_may_be_mirrored(size):
    x = picture(2, 12, 20, 3)
    for rows, columns in ((slice(1, 4), slice(2, 3)), (slice(0, 5, 2), slice(None, None, -1))):
        part = range(size[0])[rows], range(size[1])[columns]
        expected = resize.to_size(x, size)[:, rows, columns]
        np.testing.assert_array_equal(resize.to_size(x, size, part), expected)
        np.testing.assert_allclose(resize.to_size(jnp.asarray(x), size, part), expected, atol=1e-6)
    for part in ((range(2), range(size[1] + 1)), (range(0), range(2)), (range(2), range(1, -2, -1))):
        with pytest.raises(ValueError, match="part must lie in a result of"):
            resize.to_size(x, size, part)


@pytest.mark.parametrize(
    "old, new", [((733, 601), (512, 40)), ((733, 601), (800, 601)), ((64, 3000), (64, 64))]
)
def test_large_pictures_are_the_exact_matrix_product(old, new):
    """Larger than what is worked on at once, in uint8, against double precision."""
    x = np.random.default_rng(0).integers(0, 256, (*old, 3), np.uint8)
    expected = x.astype(np.float64)
    for axis, (num_in, num_out) in enumerate(zip(old, new, strict=True)):
        if num_out < num_in:
            bounds = np.arange(num_out + 1) * num_in / num_out
            sums = np.concatenate([np.zeros_like(expected.take([0], axis)), expected.cumsum(axis)], axis)
            low = np.minimum(bounds.astype(int), num_in - 1)
            rest = (bounds - low).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
            filled = sums.take(low, axis) + rest * expected.take(low, axis)
            expected = np.diff(filled, axis=axis) * num_out / num_in
        elif num_out > num_in:
            matrix = resize.matrix(num_in, num_out).astype(np.float64)
            expected = np.moveaxis(np.tensordot(matrix, expected, (1, axis)), 0, axis)
    np.testing.assert_allclose(resize.to_size(x, new) / 255, expected / 255, atol=2e-6)


def test_results_can_be_written_into_a_batch():
    x, batch = picture(12, 20, 3), np.zeros((2, 5, 9, 3), np.float32)
    resize.to_size(x, (5, 9), out=batch[1])
    np.testing.assert_array_equal(batch[1], resize.area(x, (5, 9)))
    assert not batch[0].any() and resize.area(np.zeros((0, 4, 4, 3)), 2).shape == (0, 2, 2, 3)
    for wrong in (batch[0, ::-1], np.zeros((5, 9, 3)), batch):
        with pytest.raises(ValueError, match="out must"):
            resize.to_size(x, (5, 9), out=wrong)


def test_integer_factor_is_the_block_mean():
    x = picture(2, 12, 20, 3)
    expected = x.reshape(2, 4, 3, 4, 5, 3).mean((2, 4))
    np.testing.assert_allclose(resize.area(x, 4), expected, atol=1e-6)


def test_fractional_factor_by_hand():
    x = np.array([1.0, 2.0, 3.0], np.float32).reshape(1, 3, 1)
    # Each half covers one pixel and a half: (1 + 2/2) / 1.5 and (2/2 + 3) / 1.5.
    np.testing.assert_allclose(resize.area(x, (1, 2)).ravel(), [2 / 1.5, 4 / 1.5], rtol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
def test_area_equals_pillow_box(factor):
    x = picture(24, 40, 1)
    size = (40 // factor, 24 // factor)
    expected = Image.fromarray(x[..., 0]).resize(size, Image.Resampling.BOX)  # mode F: no rounding
    np.testing.assert_allclose(resize.area(x, size[::-1])[..., 0], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (9, 13), (8, 50)])
def test_bilinear_equals_jax_image_resize(size):
    x = picture(2, 8, 13, 3)
    expected = jax.image.resize(x, (2, *size, 3), method="linear", antialias=False)
    np.testing.assert_allclose(resize.bilinear(x, size), expected, atol=2e-6)


def test_constants_and_identity():
    x = np.full((7, 9, 3), 0.3, np.float32)
    np.testing.assert_allclose(resize.area(x, (3, 4)), 0.3, rtol=1e-6)
    np.testing.assert_allclose(resize.bilinear(x, (19, 22)), 0.3, rtol=1e-6)
    x = picture(7, 9, 3)
    for function in (resize.area, resize.bilinear):
        np.testing.assert_array_equal(function(x, (7, 9)), x)


@pytest.mark.parametrize("dtype", [np.uint8, np.float64, jnp.bfloat16])
def test_result_is_float32(dtype):
    x = np.full((4, 4, 3), 200).astype(dtype)
    for small in (resize.area(x, 2), resize.area(jnp.asarray(x), 2)):
        assert small.dtype == np.float32
        np.testing.assert_array_equal(small, 200)


def test_gradient_flows():
    # A linear map's gradient is its transpose: each old pixel gets an equal share.
    gradient = jax.grad(lambda x: resize.area(x, 2).sum())(jnp.asarray(picture(6, 6, 1)))
    np.testing.assert_allclose(gradient, 1 / 9, rtol=1e-5)
    gradient = jax.grad(lambda x: resize.bilinear(x, 12).sum())(jnp.asarray(picture(6, 6, 1)))
    np.testing.assert_allclose(gradient.sum(), 144, rtol=1e-5)


def test_wrong_direction_is_refused():
    x = picture(8, 8, 3)
    with pytest.raises(ValueError, match="must make pictures smaller.*8x8.*16x16.*bilinear"):
        resize.area(x, 16)
    with pytest.raises(ValueError, match="must make pictures larger.*8x8.*4x8.*area"):
        resize.bilinear(x, (4, 8))
    with pytest.raises(ValueError, match="must not be empty"):
        resize.area(x, 0)
    with pytest.raises(ValueError, match=r"shape \(8, 8\)"):
        resize.area(x[..., 0], 4)


def test_area_by_rows_is_area():
    x = np.random.default_rng(0).integers(0, 256, (61, 40_000, 3), np.uint8)
    for size in ((61, 100), (7, 3), (1, 1), (60, 40_000)):
        for picture in (x, x[:, :90]):
            size = size[0], min(size[1], picture.shape[1])
            made = resize.area_by_rows(lambda first, last: picture[first:last], picture.shape, size)  # noqa: B023
            np.testing.assert_allclose(made, resize.area(picture, size), rtol=1e-5)
    with pytest.raises(ValueError, match="must be at most that of the picture"):
        resize.area_by_rows(lambda first, last: x[first:last], x.shape, (62, 9))


@pytest.mark.parametrize(("old", "new"), [((4, 6), (16, 24)), ((3, 1), (7, 5)), ((5, 5), (5, 9))])
def test_corners_stay_in_the_corners(old, new):
    """As torch does with align_corners=True: pixel i of n lies at i / (n - 1) of the side."""
    x = np.random.default_rng(0).normal(size=(2, *old, 3)).astype(np.float32)
    place = lambda n, size: np.linspace(0, size - 1, n)
    rows = np.apply_along_axis(lambda line: np.interp(place(new[0], old[0]), np.arange(old[0]), line), 1, x)
    expected = np.apply_along_axis(lambda line: np.interp(place(new[1], old[1]), np.arange(old[1]), line), 2, rows)
    found = resize.bilinear_corners(jnp.asarray(x), new)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    with pytest.raises(ValueError, match="must be at least that of the picture"):
        resize.bilinear_corners(jnp.asarray(x), (2, 2))
