import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import resize, stage
from imagen_jax.diffusion import schedules
from imagen_jax.structs import TextCond

loss_of = jax.jit(stage.loss, static_argnums=1)


def batch_of(tiny_batch, size):
    return tiny_batch | {"x": resize.area(tiny_batch["x"], size)}


def test_loss_of_an_untrained_network_is_the_power_of_its_target(tiny_configs, tiny_batch):
    """The output is zero at initialisation, so each prediction's loss is E[target^2]."""
    config = tiny_configs[0]
    batch = batch_of(tiny_batch, 8)
    draws = stage.draw(config, jax.random.key(0), 8)
    alpha, sigma = schedules.alpha_sigma(schedules.cosine(draws.t))
    power = np.mean(np.square(batch["x"]), axis=(1, 2, 3))
    expected = {"x": power, "eps": np.ones(8), "v": alpha**2 + sigma**2 * power}
    params = jax.jit(stage.init, static_argnums=0)(config, jax.random.key(0))
    for prediction, value in expected.items():
        process = dataclasses.replace(config.process, prediction=prediction)
        loss = loss_of(params, dataclasses.replace(config, process=process), batch, draws)
        np.testing.assert_allclose(loss, np.mean(value), rtol=0.05)


def test_captions_are_dropped_at_the_stated_rate(tiny_configs):
    process = dataclasses.replace(tiny_configs[0].process, cond_drop_prob=0.25)
    draws = stage.draw(dataclasses.replace(tiny_configs[0], process=process), jax.random.key(0), 4000)
    assert abs(float(draws.dropped.mean()) - 0.25) < 0.03


def test_a_dropped_caption_is_zeros_under_one_valid_token(tiny_text):
    dropped = tiny_text.drop(jnp.array([True] + [False] * 6))
    assert not dropped.embeddings[0].any() and dropped.mask[0].tolist() == [True] + [False] * 4
    np.testing.assert_array_equal(dropped.embeddings[1:], tiny_text.embeddings[1:])
    np.testing.assert_array_equal(dropped.mask[1:], tiny_text.mask[1:])


def test_a_dropped_caption_does_not_reach_the_loss(tiny_stages, tiny_batch):
    config, params = tiny_stages[0].config, tiny_stages[0].params
    batch = batch_of(tiny_batch, 8)
    draws = stage.draw(config, jax.random.key(0), 8)
    other = batch | {"text": batch["text"][::-1], "text_mask": batch["text_mask"][::-1]}
    all_dropped = draws.replace(dropped=jnp.ones(8, bool))
    none_dropped = draws.replace(dropped=jnp.zeros(8, bool))
    loss = lambda batch, draws: float(loss_of(params, config, batch, draws))
    assert loss(batch, all_dropped) == loss(other, all_dropped)
    assert loss(batch, none_dropped) != loss(other, none_dropped)


def test_training_and_sampling_condition_alike(tiny_stages, tiny_batch):
    """The low-res image of training is the area average, up-sampled bilinearly, then noised."""
    config = tiny_stages[1].config
    low_res = resize.area(jnp.asarray(tiny_batch["x"]), config.low_res_size)
    keys = jax.random.split(jax.random.key(0), 8)
    level = jnp.linspace(0, 0.7, 8)
    cond = stage.condition_on_low_res(config, stage.Cond(text=None), low_res, level, keys)
    clean = resize.bilinear(low_res, config.image_size)
    noise = np.asarray(cond.low_res_noised - jnp.sqrt(1 - level**2)[:, None, None, None] * clean)
    np.testing.assert_allclose(noise.std(axis=(1, 2, 3)), level, atol=0.06)
    np.testing.assert_allclose(noise[0], np.zeros_like(noise[0]), atol=1e-3)


def test_keys_of_images_are_a_prefix():
    few, many = stage.image_keys(5, 3), stage.image_keys(5, 9)
    np.testing.assert_array_equal(jax.random.key_data(few), jax.random.key_data(many[:3]))
    assert len({tuple(k) for k in jax.random.key_data(many).tolist()}) == 9


def test_stage_is_a_pytree_with_a_static_configuration(tiny_stages):
    calls = []

    @jax.jit
    def first(stage_):
        calls.append(stage_.config.name)
        return jax.tree.leaves(stage_.params)[0]

    first(tiny_stages[0])
    first(jax.tree.map(lambda leaf: leaf * 2, tiny_stages[0]))
    assert calls == ["base"]


def test_denoise_returns_x_hat(tiny_stages, tiny_text):
    base = tiny_stages[0]
    z_t = jax.random.normal(jax.random.key(0), (7, 8, 8, 3))
    zero = jax.tree.map(jnp.zeros_like, base)  # v = 0
    logsnr = jnp.full((7,), 1.0)
    x_hat = jax.jit(stage.Stage.denoise)(
        zero, z_t, logsnr, stage.Cond(TextCond(tiny_text.embeddings, tiny_text.mask))
    )
    np.testing.assert_allclose(x_hat, schedules.alpha_sigma(1.0)[0] * z_t, rtol=1e-5)
