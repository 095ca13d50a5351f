import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from imagen_jax.diffusion import thresholding

X = 3 * jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
QS = (0.0, 0.25, 0.5, 0.995, 1.0)
INF, NAN = np.inf, np.nan
TINY = np.finfo(np.float32).tiny  # arithmetic below it may flush to zero
KINDS = {
    "random": lambda x, rng: x,
    "magnitudes": lambda x, rng: np.abs(x),
    "saturated": lambda x, rng: np.clip(x, -0.9, 0.9),
    "ties": lambda x, rng: rng.choice([0, 0.5, 1], x.shape),
    "constant": lambda x, rng: np.full(x.shape, -0.25),
    "both zeros": lambda x, rng: np.where(x < 0, -0.0, 0.0),
    "all scales": lambda x, rng: x * 10.0 ** rng.integers(-45, 38, x.shape),
    "subnormal": lambda x, rng: x * 1e-40,
    "some infinite": lambda x, rng: np.where(rng.random(x.shape) < 0.3, INF * x, x),
    "half infinite": lambda x, rng: np.where(x > 0, INF, x),
}


def images(kind, shape=(3, 7, 5, 3)):
    rng = np.random.default_rng(0)
    return KINDS[kind](rng.normal(0, 0.7, shape), rng).astype(np.float32)


def assert_is_quantile(got, x, q):
    """Against a full sort in float64: equal where it is a pixel, else to the rounding of float32."""
    assert got.dtype == jnp.float32 and got.shape == x.shape[:1]
    for value, image in zip(np.asarray(got), np.asarray(x, np.float64), strict=True):
        v = np.sort(image.ravel())
        position = q * (v.size - 1)
        lo = math.floor(position)
        low, high, weight = v[lo], v[min(lo + 1, v.size - 1)], position - lo
        if np.isnan(image).any():
            assert np.isnan(value)
        elif weight == 0 or low == high:
            assert value == low
        elif np.isinf([low, high]).any():
            np.testing.assert_equal(value, np.float32(low + high))  # NaN between -inf and inf
        else:
            size = max(abs(low), abs(high))
            assert abs(value - (low + weight * (high - low))) <= 2**-21 * size + TINY
            assert low - TINY <= value <= high + TINY  # XLA flushes numbers below TINY to 0


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("kind", KINDS)
def test_quantile_is_that_of_a_full_sort(kind, q):
    x = images(kind)
    assert_is_quantile(thresholding.quantile(x, q), x, q)


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 2), (3, 1, 1, 3), (3, 700)])
def test_quantile_of_any_shape(shape, q):
    x = images("random", shape)
    assert_is_quantile(thresholding.quantile(x, q), x, q)


@pytest.mark.parametrize("q", QS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["random", "ties", "some infinite", "all scales"])
def test_quantile_in_half_precision(kind, dtype, q):
    x = jnp.asarray(images(kind)).astype(dtype)
    assert_is_quantile(thresholding.quantile(x, q), x, q)


@settings(max_examples=200, deadline=None)
@given(
    x=st.sampled_from([(2, 1), (2, 2), (2, 3), (2, 8)]).flatmap(
        lambda shape: hnp.arrays(np.float32, shape, elements=st.floats(width=32))
    ),
    q=st.floats(0, 1, width=32, allow_subnormal=False) | st.sampled_from(QS),
)
def test_quantile_of_arbitrary_floats(x, q):
    assert_is_quantile(thresholding.quantile(x, q), x, q)


def test_nan_stays_in_its_image():
    x = images("random")
    x[0, 1, 2, 0], x[2, 6, 4, 2] = NAN, -NAN
    got = thresholding.quantile(x, 0.5)
    np.testing.assert_array_equal(np.isnan(got), [True, False, True])
    assert got[1] == thresholding.quantile(x[1:2], 0.5)[0]


@pytest.mark.parametrize(
    "pixels, q, expected",
    [
        ([0, 1, INF], 0.5, 1),  # a zero weight does not touch the next pixel
        ([0, INF, INF], 0.75, INF),
        ([-INF, -INF, 0], 0.25, -INF),
        ([-INF, 0, 1], 0.25, -INF),
        ([-INF, INF], 0.5, NAN),
        ([-3e38, 3e38], 0.5, 0),  # whose difference is not a float32
        ([-3e38, 3e38], 1 - 2**-40, 3e38),
    ],
)
def test_quantile_beyond_finite_arithmetic(pixels, q, expected):
    got = thresholding.quantile(np.float32([pixels]), q)
    np.testing.assert_array_equal(got, np.float32([expected]))


@pytest.mark.parametrize("q", [0.995, 0.7, 0.37])
def test_position_is_exact_in_a_large_image(q):
    num = 1024 * 1024 * 3
    position = q * (num - 1)
    x = np.arange(num)[::-1] > math.floor(position)  # 0 up to the rank, 1 above it
    got = thresholding.quantile(x.reshape(1, 1024, 1024, 3), q)
    np.testing.assert_allclose(got, [position % 1], atol=1e-7)
    assert abs(np.float32(q) * np.float32(num - 1) % 1 - position % 1) > 0.02  # what float32 would make of it


def test_quantile_under_transformations():
    x = images("saturated", (8, 16, 4, 3))
    quantile = lambda x: thresholding.quantile(x, 0.995)
    expected = np.asarray(quantile(x))
    _, scanned = jax.lax.scan(lambda carry, x: (carry, quantile(x)), 0, x.reshape(4, 2, 16, 4, 3))
    for got in (
        jax.jit(quantile)(x),
        jax.vmap(quantile)(x.reshape(4, 2, 16, 4, 3)),
        jax.vmap(quantile, in_axes=1, out_axes=1)(x.reshape(2, 4, 16, 4, 3)),
        jax.pmap(quantile)(x.reshape(8, 1, 16, 4, 3)),
        scanned,
    ):
        np.testing.assert_array_equal(got.ravel(), expected)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("spec", [(None, "height"), ("data", "height"), ("data", None, "height"), ("data",)])
def test_an_image_spread_over_devices_stays_there(spec, axis_type):
    x = images("saturated", (4, 16, 8, 3))
    mesh = jax.make_mesh((2, 4), ("data", "height"), axis_types=(axis_type,) * 2)
    spread = jax.device_put(x, NamedSharding(mesh, PartitionSpec(*spec)))
    quantile = jax.jit(lambda x: thresholding.quantile(x, 0.995)).lower(spread).compile()
    np.testing.assert_array_equal(quantile(spread), thresholding.quantile(x, 0.995))
    exchanged = re.findall(r"= \(?\w+\[([\d,]*)\]\S* (?:all|collective|reduce-scatter)", quantile.as_text())
    assert exchanged or spec == ("data",)
    assert all(math.prod(map(int, shape.split(","))) <= 16 for shape in exchanged)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_quantile_sorts_and_gathers_nothing(dtype):
    jaxpr = str(jax.make_jaxpr(lambda x: thresholding.quantile(x, 0.995))(X.astype(dtype)))
    assert " reduce[" in jaxpr
    assert not re.search(r"\b(sort|top_k|approx_top_k|gather|scatter\w*|dynamic_slice|\w+64)\b", jaxpr)


@pytest.mark.parametrize("q", [-0.1, 1.5, 99.5, NAN, "0.5", None])
def test_quantile_refuses_what_is_no_fraction(q):
    with pytest.raises(ValueError, match=r"q must be (in \[0, 1\]|a finite number); got"):
        thresholding.quantile(X, q)


def test_quantile_refuses_images_without_pixels():
    with pytest.raises(ValueError, match="at least one pixel"):
        thresholding.quantile(jnp.zeros((2, 0, 4, 3)), 0.5)
    assert thresholding.quantile(jnp.zeros((0, 4, 4, 3)), 0.5).shape == (0,)


@settings(max_examples=25, deadline=None)
@given(q=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_dynamic_is_the_definition(q, seed):
    x = np.random.default_rng(seed).normal(0, 2, (2, 5, 5, 3)).astype(np.float32)
    for image, got in zip(x, thresholding.dynamic(x, percentile=q), strict=True):
        s = max(1.0, np.quantile(np.abs(image), q))
        np.testing.assert_allclose(got, np.clip(image, -s, s) / s, atol=1e-6)


def test_each_image_has_its_own_threshold():
    alone = thresholding.dynamic(X[1:2])
    together = thresholding.dynamic(X.at[0].multiply(100))
    np.testing.assert_array_equal(alone[0], together[1])


def test_images_in_range_are_unchanged():
    x = jnp.tanh(X)
    np.testing.assert_array_equal(thresholding.dynamic(x), x)
    np.testing.assert_array_equal(thresholding.static(x), x)


def test_cap_one_is_static():
    np.testing.assert_allclose(thresholding.dynamic(X, cap=1.0), thresholding.static(X))


def test_floor_and_cap_bound_the_threshold():
    np.testing.assert_allclose(thresholding.dynamic(X, floor=100.0), X / 100, rtol=1e-6)
    np.testing.assert_allclose(thresholding.dynamic(X, cap=2.0), jnp.clip(X, -2, 2) / 2, rtol=1e-6)
    faint = X / 1000
    np.testing.assert_allclose(thresholding.dynamic(faint, 1.0, floor=0.5), faint / 0.5, rtol=1e-6)
    assert jnp.abs(thresholding.dynamic(faint, 1.0, floor=1e-6)).max() == 1


@pytest.mark.parametrize("threshold", [thresholding.static, thresholding.dynamic])
def test_output_is_in_range(threshold):
    assert jnp.abs(threshold(X)).max() <= 1


def test_dynamic_keeps_contrast_where_static_saturates():
    ramp = jnp.linspace(-4, 4, 192).reshape(1, 8, 8, 3)
    saturated = lambda x: float(jnp.mean(jnp.abs(x) > 0.99))
    assert saturated(thresholding.static(ramp)) > 0.7 > 0.05 > saturated(thresholding.dynamic(ramp))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_dynamic_computes_in_float32(dtype):
    x = X.astype(dtype)
    got = thresholding.dynamic(x)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, thresholding.dynamic(x.astype(jnp.float32)).astype(dtype))


def test_dynamic_takes_flat_images():
    np.testing.assert_array_equal(
        thresholding.dynamic(X.reshape(4, 192)), thresholding.dynamic(X).reshape(4, 192)
    )


def test_few_infinite_pixels_are_clipped():
    x = X.at[0, 0, 0].set(jnp.array([INF, -INF, 0]))
    got = thresholding.dynamic(x, percentile=0.9)
    np.testing.assert_array_equal(got[0, 0, 0], [1, -1, 0])
    assert jnp.isfinite(got).all()


def test_an_infinite_threshold_keeps_infinite_pixels_visible():
    x = jnp.full((1, 2, 2, 3), INF).at[0, 0].set(5.0)
    got = thresholding.dynamic(x)
    np.testing.assert_array_equal(got, jnp.where(jnp.isfinite(x), 0, NAN))
    np.testing.assert_array_equal(thresholding.dynamic(-x, cap=2.0), -jnp.ones_like(x))


def test_nan_makes_its_image_nan():
    got = thresholding.dynamic(X.at[2, 3, 4, 1].set(NAN), cap=2.0)
    assert jnp.isnan(got[2]).all()
    np.testing.assert_array_equal(got[3], thresholding.dynamic(X, cap=2.0)[3])


def test_differentiation_takes_the_threshold_for_a_constant():
    slope = jax.grad(lambda x: thresholding.dynamic(x, 0.9).sum())(X)
    s = thresholding.quantile(jnp.abs(X), 0.9)[:, None, None, None]
    np.testing.assert_allclose(slope, jnp.where(jnp.abs(X) < s, 1 / s, 0), rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"percentile": 0.0}, r"percentile must be in \(0, 1\]; got 0.0"),
        ({"percentile": 99.5}, r"percentile must be in \(0, 1\]; got 99.5: give a fraction"),
        ({"percentile": NAN}, "percentile must be"),
        ({"floor": 0.0}, "floor must be positive; got 0.0"),
        ({"floor": INF}, "floor must be a finite number; got inf"),
        ({"cap": 0.9}, "cap must be at least floor, 1; got 0.9"),
        ({"floor": 2.0, "cap": 1.5}, "cap must be at least floor, 2; got 1.5"),
        ({"cap": NAN}, "cap must be a finite number; got nan: give None"),
    ],
)
def test_dynamic_refuses_options_without_sense(options, message):
    with pytest.raises(ValueError, match=message) as error:
        thresholding.dynamic(X, **options)
    assert "\n" not in str(error.value)
