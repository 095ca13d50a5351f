"""Partial cascades, other inputs and other sizes."""

import dataclasses
from operator import itemgetter

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import Stage, image_keys, resize, sample_cascade, sample_stage, stage
from imagen_jax import config as C
from imagen_jax.diffusion import editing, samplers, schedules
from imagen_jax.sampling import one_stage, recipe
from tests.conftest import WIDTH, random_array

KEYS = image_keys(3, 7)


def with_random_params(config: C.StageConfig) -> Stage:
    shapes = jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
    rng = np.random.default_rng(1)
    return Stage(params=jax.tree.map(lambda leaf: random_array(rng, leaf.shape), shapes), config=config)


@pytest.fixture(scope="module")
def picture():
    """Seven smooth pictures of 16x16."""
    coarse = np.random.default_rng(5).uniform(-0.9, 0.9, (7, 4, 4, 3))
    return jnp.asarray(resize.bilinear(coarse, 16))


# --- parts of a cascade ---------------------------------------------------------------------------


def test_start_and_stop_at_any_stage(tiny_stages, tiny_text):
    base, final = sample_cascade(tiny_stages, tiny_text, KEYS, return_all=True)
    only_base = sample_cascade(tiny_stages, tiny_text, KEYS, stop="base")
    np.testing.assert_array_equal(only_base, base)
    rest = sample_cascade(tiny_stages, tiny_text, KEYS, start="sr16", low_res=base)
    np.testing.assert_array_equal(rest, final)


def test_an_image_of_the_wrong_size_to_start_from(tiny_stages, tiny_text):
    for size in (5, 16):
        with pytest.raises(
            ValueError, match=rf"low_res must be \[7, 8, 8, 3\] .* got \(7, {size}, {size}, 3\)"
        ):
            sample_cascade(tiny_stages, tiny_text, KEYS, start="sr16", low_res=jnp.zeros((7, size, size, 3)))


@pytest.mark.slow
def test_other_shapes_keep_their_share_at_every_stage(tiny_stages, tiny_text):
    base, final = sample_cascade(tiny_stages, tiny_text, KEYS, return_all=True, size=(16, 32))
    assert base.shape == (7, 8, 16, 3) and final.shape == (7, 16, 32, 3)
    wide = sample_stage(tiny_stages[1], tiny_text, KEYS, low_res=base, size=(16, 32))
    np.testing.assert_array_equal(wide, final)


def test_given_noise_takes_the_place_of_that_of_the_keys(tiny_stages, tiny_text):
    noise = jax.random.normal(jax.random.key(0), (7, 8, 8, 3))
    run = lambda keys: sample_cascade(tiny_stages, tiny_text, keys, stop="base", z_1=noise)
    np.testing.assert_array_equal(run(KEYS), run(image_keys(99, 7)))  # ddim draws no more
    assert np.abs(run(KEYS) - sample_cascade(tiny_stages, tiny_text, KEYS, stop="base")).mean() > 0.01
    with pytest.raises(ValueError, match=r"z_1 must be \[7, 8, 8, 3\]"):
        sample_cascade(tiny_stages, tiny_text, KEYS, z_1=noise[:, :4])


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 4])
def test_any_number_of_channels(tiny_configs, tiny_text, channels):
    stages = tuple(with_random_params(dataclasses.replace(c, image_channels=channels)) for c in tiny_configs)
    assert sample_cascade(stages, tiny_text, KEYS, steps=2).shape == (7, 16, 16, channels)


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


# --- what is computed once ------------------------------------------------------------------------


def test_features_of_the_condition_change_nothing(tiny_stages, tiny_text):
    for tiny, size in zip(tiny_stages, (8, 16), strict=True):
        z_t = jax.random.normal(jax.random.key(0), (7, size, size, 3))
        cond = stage.Cond(tiny_text)
        if tiny.config.is_super_resolution:
            cond = cond.replace(low_res_noised=0.5 * z_t[:, ::-1], aug_logsnr=jnp.linspace(-1, 3, 7))
        logsnr = jnp.linspace(-3, 3, 7)
        denoise = jax.jit(tiny.denoise)
        prepared = jax.jit(tiny.prepare)(cond)
        np.testing.assert_allclose(denoise(z_t, logsnr, prepared), denoise(z_t, logsnr, cond), atol=2e-6)


@pytest.mark.slow
def test_text_and_low_res_are_not_read_again_at_every_step(tiny_stages, tiny_text):
    """With the features, nothing depends on the embeddings, the aug level or the low-res image any more."""
    tiny = tiny_stages[1]
    z_t = jax.random.normal(jax.random.key(0), (7, 16, 16, 3))
    cond = stage.Cond(tiny_text, low_res_noised=0.3 * z_t, aug_logsnr=jnp.zeros(7))
    prepared = jax.jit(tiny.prepare)(cond)
    denoise = jax.jit(tiny.denoise)
    spoiled = prepared.replace(
        text=prepared.text.replace(embeddings=jnp.full_like(tiny_text.embeddings, jnp.nan)),
        low_res_noised=jnp.full_like(z_t, jnp.nan),
        aug_logsnr=jnp.full((7,), jnp.nan),
    )
    np.testing.assert_array_equal(denoise(z_t, jnp.zeros(7), spoiled), denoise(z_t, jnp.zeros(7), prepared))
    kinds = {
        jax.tree_util.keystr(path).split("'")[-2] for path, _ in jax.tree.leaves_with_path(prepared.features)
    }
    assert kinds == {"text", "condition", "text_key_value", "images"}


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


# --- inpainting -----------------------------------------------------------------------------------


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


@pytest.mark.slow
def test_the_known_part_has_the_exact_marginal_at_every_level():
    """N(alpha x, sigma^2), by a deterministic and by a stochastic sampler, with resampling too."""
    num, x = 20_000, 0.6
    grid = schedules.grid(schedules.make("cosine"), 6)
    image, mask = (
        jnp.full((num, 1, 2, 1), x),
        jnp.broadcast_to(jnp.array([0.0, 1.0])[None, None, :, None], (num, 1, 2, 1)),
    )
    keys = jax.random.split(jax.random.key(0), num)
    for sampler, resample in (("dpmpp_2m", 1), (samplers.DDPM(0.0), 1), (samplers.DDIM(0.6), 1), ("ddim", 3)):
        seen = []

        def watched(z_t, logsnr_t, seen=seen):
            keep = lambda z, levels: seen.append((np.asarray(z), float(levels[0])))
            jax.debug.callback(keep, z_t, logsnr_t, ordered=True)
            return 0.5 * z_t

        painted = editing.inpainting(watched, image, mask)
        z_1 = samplers.normal(jax.random.split(jax.random.key(1), num), (1, 2, 1))
        jax.block_until_ready(
            samplers.sample(painted, z_1, grid, sampler=sampler, keys=keys, resample=resample)
        )
        jax.effects_barrier()
        assert len(seen) == 6 * resample
        for noised, level in seen:
            alpha, sigma = schedules.alpha_sigma(level)
            known = noised[:, 0, 0, 0]
            assert known.mean() == pytest.approx(float(alpha) * x, abs=4 * float(sigma) / num**0.5 + 1e-4)
            assert known.std() == pytest.approx(float(sigma), rel=0.03)


def test_outpainting_adds_borders_to_paint():
    image = jnp.ones((2, 4, 4, 3))
    larger, mask = editing.outpainting(image, left=2, bottom=1)
    assert larger.shape == (2, 5, 6, 3) and mask.shape == (2, 5, 6, 1)
    np.testing.assert_array_equal(larger[:, :4, 2:], image)
    assert mask.sum() == 2 * (5 * 6 - 16) and not mask[:, :4, 2:].any()
    with pytest.raises(ValueError, match="whole numbers from 0 to .* and not all 0"):
        editing.outpainting(image)


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


# --- broken networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", ["none", "static", "dynamic"])
def test_nan_and_infinity_are_named_with_stage_and_step(tiny_stages, tiny_text, threshold):
    for value in (np.nan, np.inf):
        spoiled = jax.tree.map(lambda leaf: leaf, tiny_stages[1].params)
        spoiled["conv_out"]["bias"] = spoiled["conv_out"]["bias"].at[1].set(value)
        stages = (tiny_stages[0], Stage(spoiled, tiny_stages[1].config))
        with pytest.raises(
            FloatingPointError, match="stage sr16: .*NaN or infinity at step 1, in 7 of 7 images"
        ):
            sample_cascade(stages, tiny_text, KEYS, threshold=threshold)
    run = jax.jit(lambda stages: sample_cascade(stages, tiny_text, KEYS, threshold=threshold))
    assert np.isnan(run(stages)).all()  # inside jit nothing can be raised, but nothing is hidden


@pytest.mark.slow
def test_every_stage_takes_edm_and_zero_terminal_snr(tiny_configs, tiny_text):
    for prediction, is_stretched, sampler in (
        ("edm", False, "heun"),
        ("v", True, "unipc"),
        ("x", True, "dpmpp_2m"),
    ):
        stages = []
        for config in tiny_configs:
            process = dataclasses.replace(
                config.process, prediction=prediction, zero_terminal_snr=is_stretched,
                schedule="lognormal" if prediction == "edm" else "linear",
            )  # fmt: skip
            stages.append(with_random_params(dataclasses.replace(config, process=process)))
        x = sample_cascade(tuple(stages), tiny_text, KEYS, sampler=sampler, spacing="rho", steps=3)
        assert np.isfinite(x).all()
        grid = recipe.logsnr_grid(stages[0].config, stages[0].config.sampling)
        assert bool(jnp.isneginf(grid[0])) == is_stretched


def test_a_user_schedule_by_name(tiny_stages, tiny_text, monkeypatch):
    mine = schedules.from_function(lambda t: 9 - 18 * t)
    monkeypatch.setitem(schedules.SCHEDULES._entries, "mine", lambda size: mine)
    x = sample_cascade(tiny_stages, tiny_text, KEYS, schedule="mine", sampler="unipc")
    assert np.isfinite(x).all()
    assert WIDTH == tiny_text.embeddings.shape[-1]
