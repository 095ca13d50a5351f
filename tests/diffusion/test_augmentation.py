import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.diffusion import augmentation, schedules


def test_level_is_the_sigma_of_the_noise():
    level = np.array([0.05, 0.1, 0.5, 0.9, 0.99])
    alpha, sigma = schedules.alpha_sigma(augmentation.level_to_logsnr(level))
    np.testing.assert_allclose(sigma, level, rtol=1e-5)
    np.testing.assert_allclose(alpha, np.sqrt(1 - level**2), rtol=1e-5)


def test_ends_are_clean_and_pure_noise():
    x, eps = jax.random.normal(jax.random.key(0), (2, 2, 4, 4, 3))
    z, logsnr = augmentation.augment(x, jnp.array([0.0, 1.0]), eps)
    np.testing.assert_allclose(z[0], x[0], atol=1e-3)
    np.testing.assert_allclose(z[1], eps[1], atol=1e-3)
    np.testing.assert_array_equal(logsnr, [schedules.LOGSNR_MAX, schedules.LOGSNR_MIN])


def test_every_image_has_its_own_level():
    x = jnp.zeros((3, 64, 64, 3))
    eps = jax.random.normal(jax.random.key(0), x.shape)
    z, _ = augmentation.augment(x, jnp.array([0.1, 0.3, 0.6]), eps)
    np.testing.assert_allclose(z.std(axis=(1, 2, 3)), [0.1, 0.3, 0.6], rtol=0.03)
