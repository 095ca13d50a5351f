"""Where sampling begins that starts from a picture, and grids by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import config as C
from imagen_jax import resize, sample_cascade, sample_stage, stage
from imagen_jax.config.validation import validate_sampling
from imagen_jax.diffusion import samplers, schedules
from imagen_jax.sampling.recipe import evaluations
from imagen_jax.structs import Cond
from tests.conftest import WIDTH
from tests.sampling.conftest import KEYS

# --- image to image -------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0.25, 0.6, 0.95])
def test_image_to_image_starts_at_the_closed_form_level(
    tiny_stages, tiny_text, picture, strength, monkeypatch
):
    """z at the start is N(alpha x, sigma^2) for the alpha and sigma of t = strength."""

    def only_start(denoise, z_1, grid, **_):
        return 0.1 * z_1, samplers.Info(jnp.zeros(7, jnp.int32), grid)

    monkeypatch.setattr(stage.samplers, "sample", only_start)
    sampling = dataclasses.replace(tiny_stages[1].config.sampling, strength=strength, steps=30)
    tenth, info = sample_stage(
        tiny_stages[1], tiny_text, KEYS, low_res=resize.area(picture, 8), image=picture, sampling=sampling,
        return_info=True,
    )  # fmt: skip
    z, logsnr = 10 * tenth, info.x_hats
    assert len(logsnr) == round(30 * strength) + 1  # steps of the same length, not as many
    assert logsnr[0] == pytest.approx(float(schedules.cosine(strength)), rel=1e-5)
    alpha, sigma = schedules.alpha_sigma(logsnr[0])
    noise = (z - alpha * picture) / sigma
    assert noise.mean() == pytest.approx(0, abs=4 / noise.size**0.5)
    assert noise.var() == pytest.approx(1, abs=4 * (2 / noise.size) ** 0.5)
    assert np.abs(np.corrcoef(noise.ravel(), picture.ravel())[0, 1]) < 4 / noise.size**0.5


@pytest.mark.slow
def test_less_strength_stays_nearer(tiny_stages, tiny_text, picture):
    distance = [
        np.abs(
            sample_cascade(tiny_stages, tiny_text, KEYS, image=picture, strength=s, steps=20) - picture
        ).mean()
        for s in (0.02, 0.3, 0.9)
    ]
    assert distance[0] < distance[1] < distance[2] and distance[0] < 0.1
    with pytest.raises(ValueError, match="strength must be below 1 for an image without a mask"):
        sample_cascade(tiny_stages, tiny_text, KEYS, image=picture)


@pytest.mark.slow
def test_a_user_schedule_by_name(tiny_stages, tiny_text, monkeypatch):
    mine = schedules.from_function(lambda t: 9 - 18 * t)
    monkeypatch.setitem(schedules.SCHEDULES._entries, "mine", lambda size: mine)
    x = sample_cascade(tiny_stages, tiny_text, KEYS, schedule="mine", sampler="unipc")
    assert np.isfinite(x).all()
    assert WIDTH == tiny_text.embeddings.shape[-1]


# --- evaluations of the network -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"guidance_scale": 1.0}, 6),
        ({}, 12),
        ({"guidance_max_logsnr": 0.1}, 6 + 4),  # t = 1, 5/6, 4/6 and 3/6
        ({"sampler": "heun", "spacing": "rho", "guidance_scale": 1.0}, 11),
        ({"resample": 3}, 36),
        ({"guidance_scale": 1.0, "final_logsnr": 1.0}, 7),
        ({"final_logsnr": 1.0}, 14),
        ({"final_logsnr": 20.0}, 12),
        ({"final_logsnr": 1.0, "guidance_max_logsnr": 0.1}, 6 + 4 + 1),  # guided as a step at its level would be
        ({"final_logsnr": 0.0, "guidance_max_logsnr": 0.1}, 6 + 4 + 2),
        ({"final_logsnr": 1.0, "resample": 3}, 36 + 2),
    ],
)
def test_evaluations_are_counted(tiny_configs, options, expected):
    sampling = C.SamplingConfig(steps=6, guidance_scale=3.0, threshold="static")
    assert evaluations(tiny_configs[0], C.override(sampling, options)) == expected


# --- the final estimate ---------------------------------------------------------------------------


def test_the_final_estimate_is_that_of_the_stage(tiny_stages, tiny_text):
    """Each stage has its own level or none; it is guided as any step is."""
    base, sr = tiny_stages
    run = lambda **options: sample_cascade(
        tiny_stages, tiny_text, KEYS, steps=2, sampler="dpmpp_2m", threshold="static", return_all=True, **options
    )
    before, after = run(guidance_scale=1.0), run(guidance_scale=1.0, final_logsnr=(0.5, 20.0))
    alpha, _ = schedules.alpha_sigma(jnp.float32(0.5))
    denoise = jax.jit(lambda stage, *args: stage.denoise(*args))
    expected = denoise(base, alpha * before[0], jnp.full(7, 0.5), Cond(tiny_text))
    np.testing.assert_allclose(after[0], jnp.clip(expected, -1, 1), atol=1e-3)
    assert np.abs(after[0] - before[0]).mean() > 0.05
    before, guided = run(guidance_scale=30.0), run(guidance_scale=30.0, final_logsnr=(0.5, 20.0))
    estimate = lambda text: denoise(base, alpha * before[0], jnp.full(7, 0.5), Cond(text))
    with_text, without = estimate(tiny_text), estimate(tiny_text.drop(jnp.ones(7, bool)))
    expected = jnp.clip(without + 30 * (with_text - without), -1, 1)
    assert np.abs(expected - jnp.clip(with_text, -1, 1)).max() > 0.1
    np.testing.assert_allclose(guided[0], expected, atol=1e-2)
    enlarged = sample_stage(sr, tiny_text, KEYS, low_res=after[0], sampling=C.override(
        sr.config.sampling, {"steps": 2, "sampler": "dpmpp_2m", "threshold": "static", "guidance_scale": 1.0}
    ))  # fmt: skip
    np.testing.assert_allclose(after[1], enlarged, atol=1e-3)


def test_a_mask_holds_in_the_final_estimate(tiny_stages, tiny_text, picture):
    _, sr = tiny_stages
    mask = jnp.zeros(picture.shape[:3]).at[:, 4:].set(1)
    sampling = C.override(sr.config.sampling, {"steps": 2, "sampler": "ddim", "final_logsnr": 0.0})
    x, info = sample_stage(
        sr, tiny_text, KEYS, low_res=resize.area(picture, 8), image=picture, mask=mask, sampling=sampling,
        return_info=True, trajectory=True,
    )  # fmt: skip
    np.testing.assert_array_equal(info.x_hats[-1][:, :4], picture[:, :4])
    assert len(info.x_hats) == 3 and (np.abs(x - picture) > 1e-3)[:, 4:].any()


def test_a_sampler_by_name_keeps_the_final_level_and_an_instance_has_its_own(tiny_configs):
    sampling = C.SamplingConfig(sampler="dpmpp_2m", final_logsnr=1.5)
    level = lambda **options: C.override(sampling, options).method("sampler").final_logsnr
    assert level(sampler="ddim", eta=0.5) == level() == 1.5 and level(final_logsnr=20.0) == 20
    assert level(sampler=samplers.DDIM()) == 20 and level(sampler=samplers.DDIM(final_logsnr=0.0)) == 0
    mine = C.SamplingConfig(sampler=samplers.DDIM(final_logsnr=0.0))
    with pytest.raises(ValueError, match="final_logsnr must be left out with an instance as sampler, which has opt"):
        validate_sampling(tiny_configs[0], C.override(mine, {"final_logsnr": 1.0}))
    both = C.override(sampling, {"guidance_low": 2.0})
    message = r"guidance_low must be left out unless final_logsnr is 20 \(off\), since it counts steps; got 2.0"
    with pytest.raises(ValueError, match=message):
        validate_sampling(tiny_configs[0], both)
