"""Partial cascades, other inputs and other sizes."""

import dataclasses
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import Stage, resize, sample_cascade, sample_stage, stage
from imagen_jax.sampling import one_stage
from tests.sampling.conftest import KEYS, with_random_params


def test_an_image_of_the_wrong_size_to_start_from(tiny_stages, tiny_text):
    for size in (5, 16):
        with pytest.raises(
            ValueError, match=rf"low_res must be \[7, 8, 8, 3\] .* got \(7, {size}, {size}, 3\)"
        ):
            sample_cascade(tiny_stages, tiny_text, KEYS, start="sr16", low_res=jnp.zeros((7, size, size, 3)))


@pytest.fixture(scope="module")
def controlled(tiny_configs):
    return tuple(with_random_params(dataclasses.replace(c, control_channels=2)) for c in tiny_configs)


@pytest.mark.slow
def test_control_conditions_every_stage(controlled, tiny_stages, tiny_text):
    control = jax.random.uniform(jax.random.key(0), (7, 16, 16, 2), minval=-1)
    one, other = (sample_cascade(controlled, tiny_text, KEYS, control=c) for c in (control, -control))
    assert np.abs(one - other).mean() > 0.01
    with pytest.raises(ValueError, match="control must be given: stage base has control_channels 2"):
        sample_cascade(controlled, tiny_text, KEYS)
    with pytest.raises(ValueError, match="control must be left out: no stage"):
        sample_cascade(tiny_stages, tiny_text, KEYS, control=control)


@pytest.mark.slow
def test_training_with_control(controlled, tiny_batch):
    base = controlled[0]
    batch = tiny_batch | {"x": resize.area(tiny_batch["x"], 8)}
    draws = stage.draw(base.config, jax.random.key(0), 8)
    loss = jax.jit(lambda image: stage.loss(base.params, base.config, batch | {"control": image}, draws))
    assert loss(jnp.zeros((8, 8, 8, 2))) != loss(jnp.ones((8, 8, 8, 2)))


# --- prompts --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_negative_prompts(tiny_stages, tiny_text):
    plain = sample_cascade(tiny_stages[:1], tiny_text, KEYS)
    other = jax.tree.map(lambda leaf: leaf[::-1], tiny_text)
    assert np.abs(sample_cascade(tiny_stages[:1], tiny_text, KEYS, negative=other) - plain).mean() > 5e-5
    null = tiny_text.drop(jnp.ones(7, bool))
    dropped = sample_cascade(tiny_stages[:1], tiny_text, KEYS, negative=null)
    np.testing.assert_allclose(dropped, plain, atol=1e-6)
    one = jax.tree.map(itemgetter(slice(0, 1)), null)
    np.testing.assert_allclose(
        sample_cascade(tiny_stages[:1], tiny_text, KEYS, negative=one), plain, atol=1e-6
    )
    with pytest.raises(
        ValueError, match=r"guidance_scale must not be 1 \(off\) in every stage with a negative prompt"
    ):
        sample_cascade(tiny_stages[:1], tiny_text, KEYS, negative=one, guidance_scale=1.0)


@pytest.mark.slow
def test_a_negative_prompt_is_for_the_guided_stages(tiny_stages, tiny_text):
    other = jax.tree.map(lambda leaf: leaf[::-1], tiny_text)
    run = lambda **options: sample_cascade(tiny_stages, tiny_text, KEYS, return_all=True, steps=2, **options)
    small, _ = run(negative=other, guidance_scale=(3.0, 1.0))
    expected = sample_cascade(tiny_stages[:1], tiny_text, KEYS, steps=2, negative=other)
    np.testing.assert_allclose(small, expected, atol=1e-6)


@pytest.mark.slow
def test_several_prompts_with_weights(tiny_stages, tiny_text):
    other = jax.tree.map(lambda leaf: leaf[::-1], tiny_text)
    run = lambda *weights: sample_cascade(tiny_stages[:1], (tiny_text, other), KEYS, weights=weights)
    np.testing.assert_allclose(run(1.0, 0.0), sample_cascade(tiny_stages[:1], tiny_text, KEYS), atol=2e-6)
    np.testing.assert_allclose(run(0.0, 1.0), sample_cascade(tiny_stages[:1], other, KEYS), atol=2e-6)
    assert np.abs(run(0.5, 0.5) - run(1.0, 0.0)).mean() > 2e-5
    with pytest.raises(ValueError, match="sum to 1"):
        run(0.5, 0.6)
    with pytest.raises(ValueError, match="weights must be given for several texts"):
        sample_cascade(tiny_stages[:1], (tiny_text, other), KEYS)


@pytest.mark.slow
def test_a_weaker_stage_takes_the_place_of_the_null(tiny_stages, tiny_text):
    """Against itself guidance does nothing, whatever the scale."""
    free = sample_cascade(tiny_stages[:1], tiny_text, KEYS, guidance_scale=1.0)
    same = sample_cascade(tiny_stages[:1], tiny_text, KEYS, guidance_scale=4.0, weak=tiny_stages[:1])
    np.testing.assert_allclose(same, free, atol=2e-5)
    weaker = (with_random_params(tiny_stages[0].config),)
    assert np.abs(sample_cascade(tiny_stages[:1], tiny_text, KEYS, weak=weaker) - free).mean() > 0.01


@pytest.mark.slow
def test_autoguidance_needs_no_dropped_captions(tiny_stages, tiny_text):
    process = dataclasses.replace(tiny_stages[0].config.process, cond_drop_prob=0.0)
    base = Stage(tiny_stages[0].params, dataclasses.replace(tiny_stages[0].config, process=process))
    with pytest.raises(ValueError, match=r"guidance_scale must be 1 \(off\).*cond_drop_prob 0"):
        sample_stage(base, tiny_text, KEYS)
    assert sample_stage(base, tiny_text, KEYS, weak=tiny_stages[0]).shape == (7, 8, 8, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": np.ones((7, 8, 8))}, "mask must have the image's size"),
        (
            {"image": np.ones((7, 16, 16, 3), np.uint8), "strength": 0.5},
            r"image must be float in .* got uint8",
        ),
        (
            {"image": np.ones((7, 8, 8, 3)), "mask": np.ones((7, 8, 8))},
            r"image must be \[B, H, W, C\] of the result's size \(16, 16\)",
        ),
        (
            {"image": np.ones((7, 16, 16, 3)), "mask": np.ones((7, 8, 8))},
            r"mask must have the image's size.* \(7, 8, 8\)",
        ),
        (
            {"image": np.ones((7, 16, 16, 3)), "mask": np.ones((7, 16, 16, 3))},
            "mask must have the image's size",
        ),
    ],
)
def test_wrong_images(tiny_stages, tiny_text, options, message, monkeypatch):
    monkeypatch.setattr(one_stage, "_sample", lambda *_, **__: pytest.fail("a stage was sampled"))
    with pytest.raises(ValueError, match=message):
        sample_cascade(tiny_stages, tiny_text, KEYS, **options)


@pytest.mark.slow
@pytest.mark.parametrize(("sampler", "resample"), [("ddim", 1), ("ddpm", 2), ("unipc", 2)])
def test_the_mask_is_honoured_at_every_stage(tiny_stages, tiny_text, picture, sampler, resample):
    """1 = paint here: the rest is the image itself, at the small stage too."""
    mask = np.zeros((7, 16, 16))
    mask[:, 3:9, 5:12] = 1
    small, final = sample_cascade(
        tiny_stages, tiny_text, KEYS, image=picture, mask=mask, return_all=True, sampler=sampler,
        resample=resample, jump=resample,
    )  # fmt: skip
    known = mask == 0
    np.testing.assert_array_equal(final[known], picture[known])
    assert np.abs(final[~known] - picture[~known]).mean() > 0.05
    known_small = resize.area(mask[..., None], 8)[..., 0] == 0
    np.testing.assert_array_equal(small[known_small], resize.area(picture, 8)[known_small])
    everything = sample_cascade(tiny_stages, tiny_text, KEYS, image=picture, mask=np.ones((7, 16, 16, 1)))
    np.testing.assert_allclose(everything, sample_cascade(tiny_stages, tiny_text, KEYS), atol=1e-6)
