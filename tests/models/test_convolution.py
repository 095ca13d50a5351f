import jax
import numpy as np
import pytest

from imagen_jax.models import convolution
from tests.models.conftest import KEY


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("height", "width"), [(8, 12), (7, 9), (64, 64)])
def test_convolution_gradients_agree_with_xla(stride, height, width):
    x = jax.random.normal(KEY, (6, height, width, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 3, 3, 5))
    padding = ((1, 1), (1, 1))

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    ours = lambda x, kernel: convolution.conv_general_dilated(x, kernel, (stride, stride), padding)
    out, vjp = jax.vjp(plain, x, kernel)
    np.testing.assert_array_equal(ours(x, kernel), out)
    cotangent = jax.random.normal(jax.random.key(2), out.shape)
    for got, expected in zip(jax.vjp(ours, x, kernel)[1](cotangent), vjp(cotangent), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-3)
