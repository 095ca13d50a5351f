"""Samplers against diffusers' schedulers: the same levels, the same network, the same noise."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process, samplers, schedules
from tests.diffusion.test_samplers import WithNoise

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "samplers.npz")
RUNS = {  # sampler, what the network predicts
    "ddim": (samplers.DDIM(), "eps"),
    "ddim_eta": (samplers.DDIM(0.7), "eps"),
    "ddim_v": (samplers.DDIM(), "v"),
    "ddim_v_to_alpha_0": (samplers.DDIM(), "v"),
    "ddpm_small": (samplers.DDPM(0.0), "eps"),
    "ddpm_small_linspace": (samplers.DDPM(0.0), "eps"),
    "ddpm_large_linspace": (samplers.DDPM(1.0), "eps"),
    "dpmpp_2m": (samplers.DPMpp2M(), "eps"),
    "dpmpp_2m_to_sigma_min": (samplers.DPMpp2M(), "eps"),
    "dpmpp_2m_sde": (samplers.DPMpp2MSDE(1.0), "eps"),
    "heun": (samplers.Heun(), "eps"),
    "heun_linspace": (samplers.Heun(), "eps"),
    "heun_rho": (samplers.Heun(), "eps"),
    "heun_churn": (samplers.Heun(churn=3.0, churn_noise=1.003), "eps"),
    "unipc_2": (samplers.UniPC(2), "eps"),
    "unipc_3": (samplers.UniPC(3), "eps"),
    "unipc_3_v_long": (samplers.UniPC(3), "v"),
    "unipc_3_to_sigma_min": (samplers.UniPC(3), "eps"),
}


def network(z_t, logsnr_t):
    """v_hat. The script that made the goldens has the same."""
    alpha, sigma = schedules.alpha_sigma(process.expand(logsnr_t, z_t))
    return 0.3 * sigma * jnp.cos(2 * z_t) - jnp.tanh(0.8 * alpha * z_t + 0.1 * jnp.sin(5 * z_t))


def with_noise(inner, noise, logsnr_grid):
    """`inner`, which in step i adds noise[i] whatever the keys."""
    at_level = lambda z_t, logsnr_t: noise[jnp.searchsorted(logsnr_grid, logsnr_t)]
    return WithNoise(inner, lambda s: s._replace(noise=noise[s.index]), at_level)


def test_every_golden_is_compared():
    assert {key.split("/")[0] for key in GOLDENS if "/" in key} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_same_as_diffusers(name):
    """In the estimates of all steps and in the last z."""
    sampler, prediction = RUNS[name]

    def denoise(z_t, logsnr_t):
        out = network(z_t, logsnr_t)
        out = process.eps_from(z_t, out, logsnr_t, "v") if prediction == "eps" else out
        return process.x_from(z_t, out, logsnr_t, prediction)

    @jax.jit
    def run(z_1, noise, grid):
        keys = jax.random.split(jax.random.key(0), len(z_1))  # what they give is replaced
        options = {"sampler": with_noise(sampler, noise, grid), "return_info": True, "trajectory": True}
        return samplers.sample(denoise, z_1, grid, keys=keys, **options)

    # Schedulers end at sigma 0. LOGSNR_MAX leaves sigma eps_hat (sigma 5e-5), logsnr 30 nothing. After
    # steps as long as h = 2.5 and 3.9 the eps_hat of a corrected z is as large as 24.
    left = 2e-3 if name == "unipc_3_v_long" else 1e-4
    for clean, atol in ((30.0, 2e-5), (schedules.LOGSNR_MAX, left)):
        grid = np.minimum(GOLDENS[f"{name}/logsnr"], clean).astype(np.float32)
        z_0, info = run(GOLDENS["z_1"], GOLDENS["noise"], grid)
        np.testing.assert_allclose(z_0, GOLDENS[f"{name}/z_0"], atol=atol, rtol=0)
        # From eps at alpha 0.006, float32 gives x_hat to 5e-5.
        np.testing.assert_allclose(info.x_hats, GOLDENS[f"{name}/x_hats"], atol=1e-4, rtol=0)
