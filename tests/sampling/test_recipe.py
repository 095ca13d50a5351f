"""Where sampling begins that starts from a picture, and grids by name."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import resize, sample_cascade, sample_stage, stage
from imagen_jax.diffusion import samplers, schedules
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
