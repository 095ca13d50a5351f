import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imagen_jax.diffusion import thresholding

X = 3 * jax.random.normal(jax.random.key(0), (4, 8, 8, 3))


@settings(max_examples=25, deadline=None)
@given(q=st.floats(0.01, 1.0), seed=st.integers(0, 99))
def test_dynamic_is_the_definition(q, seed):
    x = np.random.default_rng(seed).normal(0, 2, (2, 5, 5, 3)).astype(np.float32)
    for image, got in zip(x, thresholding.dynamic(x, percentile=q), strict=True):
        s = max(1.0, np.quantile(np.abs(image), q))
        np.testing.assert_allclose(got, np.clip(image, -s, s) / s, atol=2e-5)


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


@pytest.mark.parametrize("threshold", [thresholding.static, thresholding.dynamic])
def test_output_is_in_range(threshold):
    assert jnp.abs(threshold(X)).max() <= 1


def test_dynamic_keeps_contrast_where_static_saturates():
    ramp = jnp.linspace(-4, 4, 192).reshape(1, 8, 8, 3)
    saturated = lambda x: float(jnp.mean(jnp.abs(x) > 0.99))
    assert saturated(thresholding.static(ramp)) > 0.7 > 0.05 > saturated(thresholding.dynamic(ramp))
