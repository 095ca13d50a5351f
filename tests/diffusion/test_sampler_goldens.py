"""Samplers against diffusers' schedulers: the same levels, the same network, the same noise."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax.diffusion import process, samplers, schedules

GOLDENS = np.load(pathlib.Path(__file__).parents[1] / "goldens" / "samplers.npz")
RUNS = {  # sampler, what the network predicts
    "ddim": (samplers.ddim(), "eps"),
    "ddim_eta": (samplers.ddim(0.7), "eps"),
    "ddim_v": (samplers.ddim(), "v"),
    "ddim_v_to_alpha_0": (samplers.ddim(), "v"),
    "ddpm_small": (samplers.ddpm(0.0), "eps"),
    "ddpm_small_linspace": (samplers.ddpm(0.0), "eps"),
    "ddpm_large_linspace": (samplers.ddpm(1.0), "eps"),
    "dpmpp_2m": (samplers.dpmpp_2m(), "eps"),
    "dpmpp_2m_linspace": (samplers.dpmpp_2m(), "eps"),
    "dpmpp_2m_to_sigma_min": (samplers.dpmpp_2m(), "eps"),
    "dpmpp_2m_sde": (samplers.dpmpp_2m(1.0), "eps"),
    "dpmpp_2m_sde_linspace": (samplers.dpmpp_2m(1.0), "eps"),
    "heun": (samplers.heun(), "eps"),
    "heun_linspace": (samplers.heun(), "eps"),
    "heun_rho": (samplers.heun(), "eps"),
    "heun_churn": (samplers.heun(churn=3.0, churn_noise=1.003), "eps"),
    "unipc_2": (samplers.unipc(2), "eps"),
    "unipc_3": (samplers.unipc(3), "eps"),
    "unipc_3_linspace": (samplers.unipc(3), "eps"),
    "unipc_3_to_sigma_min": (samplers.unipc(3), "eps"),
}


def network(z_t, logsnr_t):
    """v_hat. The script that made the goldens has the same."""
    alpha, sigma = schedules.alpha_sigma(process.expand(logsnr_t, z_t))
    return 0.3 * sigma * jnp.cos(2 * z_t) - jnp.tanh(0.8 * alpha * z_t + 0.1 * jnp.sin(5 * z_t))


def with_noise(inner, noise, logsnr_grid):
    """`inner`, which in step i adds noise[i] whatever the keys."""

    def churn(z_t, logsnr_t, _, steps):
        return inner.churn(z_t, logsnr_t, noise[jnp.searchsorted(logsnr_grid, logsnr_t)], steps)

    return inner._replace(
        step=lambda s, carry: inner.step(s._replace(noise=noise[s.index]), carry),
        churn=churn if inner.churn else None,
    )


def test_every_golden_is_compared():
    assert {key.split("/")[0] for key in GOLDENS if "/" in key} == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    ("clean", "atol"), [(schedules.LOGSNR_MAX, 1e-4), (60.0, 1e-5)], ids=["sigma 5e-5", "sigma 1e-13"]
)
def test_same_as_diffusers(name, clean, atol):
    """In every estimate and in the last z. `clean` stands for the end at sigma 0 that schedulers have."""
    sampler, prediction = RUNS[name]
    grid = jnp.minimum(jnp.asarray(GOLDENS[f"{name}/logsnr"], jnp.float32), clean)

    def denoise(z_t, logsnr_t):
        out = network(z_t, logsnr_t)
        out = process.eps_from(z_t, out, logsnr_t, "v") if prediction == "eps" else out
        return process.x_from(z_t, out, logsnr_t, prediction)

    sampler = with_noise(sampler, jnp.asarray(GOLDENS["noise"]), grid)
    keys = jax.random.split(jax.random.key(0), 2)  # their noise is replaced
    z_0, info = samplers.sample(
        denoise, jnp.asarray(GOLDENS["z_1"]), grid, sampler=sampler, keys=keys, return_info=True, trajectory=True
    )
    print(name, clean, "xhats", [f"{e:.1e}" for e in np.abs(info.x_hats-GOLDENS[f"{name}/x_hats"]).max((1,2,3,4))], "z_0 %.2e" % np.abs(z_0-GOLDENS[f"{name}/z_0"]).max())
    np.testing.assert_allclose(info.x_hats, GOLDENS[f"{name}/x_hats"], atol=atol, rtol=0)
    np.testing.assert_allclose(z_0, GOLDENS[f"{name}/z_0"], atol=atol, rtol=0)
