"""A denoiser whose estimate depends on the condition, to be guided."""


import jax
import jax.numpy as jnp

Z = jax.random.normal(jax.random.key(0), (3, 4, 4, 2))
LOGSNR = jnp.array([-1.0, 0.0, 1.0])
COND, NULL = {"a": jnp.array([1.5, 2.0, 3.0])}, {"a": jnp.zeros(3)}


def denoise(z_t, logsnr_t, cond):
    return z_t * (logsnr_t + cond["a"])[:, None, None, None] + 0.1 * cond["a"][:, None, None, None]


def counted():
    """(denoiser, list of the batch sizes that it was really evaluated at, under jit too)."""
    calls = []

    def run(z_t, logsnr_t, cond):
        jax.debug.callback(lambda z: calls.append(len(z)), z_t)
        return denoise(z_t, logsnr_t, cond)

    return run, calls


def evaluate(guided, logsnr=LOGSNR):
    out = jax.block_until_ready(jax.jit(guided)(Z, logsnr))
    jax.effects_barrier()
    return out
