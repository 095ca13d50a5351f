import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import guidance

Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
LOGSNR = jnp.array([-1.0, 0.0, 1.0])
COND, NULL = {"a": jnp.array([1.0, 2.0, 3.0])}, {"a": jnp.zeros(3)}


def denoise(z_t, logsnr_t, cond):
    return z_t * (logsnr_t + cond["a"])[:, None, None, None]


def test_scale_one_is_off():
    calls = []

    def counted(z_t, logsnr_t, cond):
        calls.append(len(z_t))
        return denoise(z_t, logsnr_t, cond)

    guided = guidance.classifier_free(counted, COND, NULL, 1.0)
    np.testing.assert_array_equal(guided(Z, LOGSNR), denoise(Z, LOGSNR, COND))
    assert calls == [3]


def test_is_the_affine_combination_in_one_call():
    calls = []

    def counted(z_t, logsnr_t, cond):
        calls.append(len(z_t))
        return denoise(z_t, logsnr_t, cond)

    got = guidance.classifier_free(counted, COND, NULL, 7.5)(Z, LOGSNR)
    np.testing.assert_allclose(
        got, 7.5 * denoise(Z, LOGSNR, COND) - 6.5 * denoise(Z, LOGSNR, NULL), rtol=1e-4, atol=1e-5
    )
    assert calls == [6]


def test_scale_zero_is_unconditional():
    got = guidance.classifier_free(denoise, COND, NULL, 0.0)(Z, LOGSNR)
    np.testing.assert_allclose(got, denoise(Z, LOGSNR, NULL), atol=1e-6)
