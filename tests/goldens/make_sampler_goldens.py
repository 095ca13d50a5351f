"""Makes the goldens of the samplers: what diffusers' schedulers make of an analytic network and fixed noise.

Run where torch and diffusers are installed (the committed file: torch 2.13.0, diffusers 0.42.1, numpy 2.4.6,
seed 0; the versions are also in the file), with no argument:

    pip install torch==2.13.0 diffusers==0.42.1 numpy==2.4.6
    python tests/goldens/make_sampler_goldens.py

Writes samplers.npz beside itself:
  versions  JSON
  z_1, noise  standard normal [B, H, W, C] and [T, B, H, W, C], the same in every run
  RUN/logsnr  float64 [T+1], the levels of the scheduler, inf where it ends without noise
  RUN/x_hats  [T, B, H, W, C], the estimate at the start of every step
  RUN/z_0  [B, H, W, C], what it returned

Betas are linear from 1e-4 to 0.02 over 1000 steps, except in heun_churn, which has levels of its own. The
schedulers' tables stay the float32 numbers that they are, but are widened, so that steps are computed in
float64 (only DPM-Solver rounds z to float32).
"""

import json
import pathlib
import sys
from collections.abc import Callable
from unittest import mock

import diffusers
import numpy as np
import torch

HERE = pathlib.Path(__file__).parent
SEED = 0
SHAPE = (2, 4, 4, 3)
STEPS = 12
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def main() -> None:
    rng = np.random.default_rng(SEED)
    z_1, noise = (rng.standard_normal(shape).astype(np.float32) for shape in (SHAPE, (STEPS, *SHAPE)))
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "numpy": np.__version__}
    arrays = {"versions": np.array(json.dumps(versions | {"seed": SEED})), "z_1": z_1, "noise": noise}
    z_1, noise = torch.from_numpy(z_1).double(), torch.from_numpy(noise).double()
    for name, run in runs().items():
        logsnr, x_hats, z_0 = run(z_1, noise)
        arrays |= {
            f"{name}/logsnr": np.asarray(logsnr, np.float64),
            f"{name}/x_hats": torch.stack(x_hats).float().numpy(),
            f"{name}/z_0": z_0.float().numpy(),
        }
    np.savez_compressed(HERE / "samplers.npz", **arrays)


def runs() -> dict[str, Callable]:
    trailing, linspace = {"timestep_spacing": "trailing"}, {"timestep_spacing": "linspace"}
    # A step of DDIMScheduler ends 1000 // T below its start. The next one starts there if T divides 1000 and
    # the spacing is trailing. By default (set_alpha_to_one) it ends at alpha 1, where no noise is added.
    ddim = trailing | {"clip_sample": False}
    ddim_v = ddim | {"prediction_type": "v_prediction"}
    # fixed_large is a variance 1 - alpha_t^2 / alpha_s^2 = (1-r) sigma_t^2 on any levels. DDPMScheduler adds
    # it in the last step too, unless that starts at time 0, as with linspace. fixed_small is 0 there.
    ddpm = {"clip_sample": False}
    # The last step is of first order because it ends at sigma 0 (final_sigmas_type "zero", the default), or,
    # with "sigma_min", because of lower_order_final, which in DPM-Solver acts below 15 steps alone.
    dpm = {"solver_order": 2, "solver_type": "midpoint", "lower_order_final": True}
    sde = dpm | {"algorithm_type": "sde-dpmsolver++"}
    unipc = {"solver_type": "bh2", "predict_x0": True, "lower_order_final": True}
    long = {"use_karras_sigmas": True, "prediction_type": "v_prediction"}
    sigma_min = linspace | {"final_sigmas_type": "sigma_min"}
    # HeunDiscreteScheduler is of first order only in the step to sigma 0; no other is longer than h = 4 here.
    return {
        "ddim": vp(diffusers.DDIMScheduler, ddim, steps=10),
        "ddim_eta": vp(diffusers.DDIMScheduler, ddim, steps=10, eta=0.7),
        "ddim_v": vp(diffusers.DDIMScheduler, ddim_v, steps=10),
        "ddim_v_to_alpha_0": vp(diffusers.DDIMScheduler, ddim_v | {"set_alpha_to_one": False}, steps=10),
        "ddpm_small": vp(diffusers.DDPMScheduler, ddpm | trailing | {"variance_type": "fixed_small"}),
        "ddpm_small_linspace": vp(
            diffusers.DDPMScheduler, ddpm | linspace | {"variance_type": "fixed_small"}
        ),
        "ddpm_large_linspace": vp(
            diffusers.DDPMScheduler, ddpm | linspace | {"variance_type": "fixed_large"}
        ),
        "dpmpp_2m": vp(diffusers.DPMSolverMultistepScheduler, dpm | trailing),
        "dpmpp_2m_to_sigma_min": vp(diffusers.DPMSolverMultistepScheduler, dpm | sigma_min),
        "dpmpp_2m_sde": vp(diffusers.DPMSolverMultistepScheduler, sde | trailing),
        "heun": vp(diffusers.HeunDiscreteScheduler, trailing),
        "heun_linspace": vp(diffusers.HeunDiscreteScheduler, linspace),
        "heun_rho": vp(diffusers.HeunDiscreteScheduler, {"use_karras_sigmas": True}),
        "heun_churn": churned,
        "unipc_2": vp(diffusers.UniPCMultistepScheduler, unipc | trailing | {"solver_order": 2}),
        "unipc_3": vp(diffusers.UniPCMultistepScheduler, unipc | trailing | {"solver_order": 3}),
        "unipc_3_v_long": vp(diffusers.UniPCMultistepScheduler, unipc | long | {"solver_order": 3}, steps=5),
        "unipc_3_to_sigma_min": vp(
            diffusers.UniPCMultistepScheduler, unipc | sigma_min | {"solver_order": 3}
        ),
    }


def alpha_sigma(logsnr: float) -> tuple[float, float]:
    return (1 + np.exp(-logsnr)) ** -0.5, (1 + np.exp(logsnr)) ** -0.5


def network(z: torch.Tensor, logsnr: float) -> torch.Tensor:
    """v_hat of the analytic network. The test has the same."""
    alpha, sigma = alpha_sigma(logsnr)
    return 0.3 * sigma * torch.cos(2 * z) - torch.tanh(0.8 * alpha * z + 0.1 * torch.sin(5 * z))


def vp(scheduler_class: type, options: dict, *, steps: int = STEPS, **step_options: float) -> Callable:
    """A run of a scheduler whose process is the variance-preserving one, from diffusers' own loop."""

    def run(z_1: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        scheduler = scheduler_class(**BETAS, **options)
        scheduler.set_timesteps(steps)
        levels = widen(scheduler).numpy()
        is_heun = isinstance(scheduler, diffusers.HeunDiscreteScheduler)
        # Heun's variable is z / alpha, ending at alpha 1. (Pipelines start it with the factor sigma / alpha.)
        sample = z_1 / alpha_sigma(levels[0])[0] if is_heun else z_1
        x_hats, draws = [], iter(noise)
        module = sys.modules[scheduler_class.__module__]
        with mock.patch.object(module, "randn_tensor", lambda *_, **__: next(draws), create=True):
            for i, (t, logsnr) in enumerate(zip(scheduler.timesteps, levels, strict=False)):
                z = scheduler.scale_model_input(sample, t)
                v, (alpha, sigma) = network(z, logsnr), alpha_sigma(logsnr)
                out = v if options.get("prediction_type") == "v_prediction" else sigma * z + alpha * v
                if not (is_heun and i % 2):  # every second call is the correction of the one before
                    x_hats.append(alpha * z - sigma * v)
                sample = scheduler.step(out, t, sample, **step_options).prev_sample
        return np.append(levels[:-1:2], levels[-1]) if is_heun else levels, x_hats, sample

    return run


def widen(scheduler: diffusers.SchedulerMixin) -> torch.Tensor:
    """Turns its tables into float64; the logsnr at which it calls the network, and where it ends."""
    if hasattr(scheduler, "sigmas"):  # S = sigma / alpha
        scheduler.sigmas = scheduler.sigmas.double()
        return -2 * torch.log(scheduler.sigmas)
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    last = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0)).double()
    squares = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], last[None]])
    return torch.log(squares) - torch.log1p(-squares)


def churned(z_1: torch.Tensor, noise: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Algorithm 2 of Karras et al. 2022 with churn. HeunDiscreteScheduler has none, KarrasVeScheduler does.

    Its pipeline takes what it calls sigma^2 for S, and so do we: S falls geometrically from 80 to 0.02. Only
    S in [0.05, 50] is raised, by 1 + 3 / T. As there, no correction in the step to S = 0.
    """
    scheduler = diffusers.KarrasVeScheduler(
        sigma_min=0.02**0.5, sigma_max=80**0.5, s_churn=3.0, s_noise=1.003, s_min=0.05, s_max=50.0
    )
    scheduler.set_timesteps(STEPS)
    levels = [float(scheduler.schedule[t]) for t in scheduler.timesteps] + [0.0]
    y = z_1 / alpha_sigma(-2 * np.log(levels[0]))[0]
    x_hats, draws = [], iter(noise)

    def call(y: torch.Tensor, level: float) -> tuple[torch.Tensor, torch.Tensor]:
        """x_hat and what the scheduler asks for, -eps_hat."""
        logsnr = -2 * np.log(level)
        alpha, sigma = alpha_sigma(logsnr)
        v = network(alpha * y, logsnr)
        return alpha * alpha * y - sigma * v, -(sigma * alpha * y + alpha * v)

    module = sys.modules[type(scheduler).__module__]
    with mock.patch.object(module, "randn_tensor", lambda *_, **__: next(draws)):
        for level, next_level in zip(levels[:-1], levels[1:], strict=True):
            y_hat, raised = scheduler.add_noise_to_input(y, level)
            x_hat, out = call(y_hat, raised)
            x_hats.append(x_hat)
            euler = scheduler.step(out, raised, next_level, y_hat)
            y = euler.prev_sample
            if next_level:
                _, out = call(y, next_level)
                y = scheduler.step_correct(out, raised, next_level, y_hat, y, euler.derivative).prev_sample
    return -2 * torch.log(torch.tensor(levels, dtype=torch.float64)), x_hats, y


if __name__ == "__main__":
    main()
