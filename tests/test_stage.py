import dataclasses
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import config as C
from imagen_jax import image_keys, resize, sample_cascade, stage
from imagen_jax.config.validation import validate
from imagen_jax.diffusion import losses, schedules
from imagen_jax.models.network import NETWORKS, NetworkConfig
from imagen_jax.structs import Cond, TextCond

loss_of = jax.jit(stage.loss, static_argnums=1)


def batch_of(tiny_batch, size):
    return tiny_batch | {"x": resize.area(tiny_batch["x"], size)}


@pytest.mark.slow
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


# --- a network from outside the package -----------------------------------------------------------


class Pixelwise(nn.Module):
    width: int
    out_channels: int

    @nn.compact
    def __call__(self, z_t, noise_level, cond, *, train=False):
        level = jnp.broadcast_to(noise_level[:, None, None, None], (*z_t.shape[:3], 1))
        h = nn.Dense(self.width)(jnp.concatenate([z_t, level], axis=-1))
        return nn.Dense(self.out_channels)(nn.silu(h))


@NETWORKS.register("pixelwise")
@dataclasses.dataclass(frozen=True)
class PixelwiseConfig(NetworkConfig):
    width: int = 4
    noise_level = "time"
    inputs = frozenset()

    def build(self, *, out_channels, dtype, scan, remat):
        return Pixelwise(self.width, out_channels)


@pytest.fixture(scope="module")
def pixelwise(tiny_configs):
    base = tiny_configs[0]
    process = dataclasses.replace(base.process, cond_drop_prob=0.0)
    sampling = C.SamplingConfig(steps=2, guidance_scale=1.0)
    return dataclasses.replace(base, image_size=5, network=PixelwiseConfig(), process=process, sampling=sampling)


def test_a_network_from_outside_the_package(pixelwise, tiny_batch, tiny_text):
    assert validate(pixelwise) is pixelwise
    stored = json.loads(json.dumps(C.to_dict(pixelwise)))
    assert stored["network"] == {"kind": "pixelwise", "width": 4} and C.from_dict(stored) == pixelwise
    params = jax.jit(stage.init, static_argnums=0)(pixelwise, jax.random.key(0))
    assert params["Dense_0"]["kernel"].shape == (4, 4)
    draws = stage.draw(pixelwise, jax.random.key(0), 8)
    gradient = jax.jit(jax.grad(stage.loss), static_argnums=1)(params, pixelwise, batch_of(tiny_batch, 5), draws)
    assert all(leaf.any() for leaf in jax.tree.leaves(gradient))
    images = sample_cascade((stage.Stage(params, pixelwise),), tiny_text, image_keys(0, 7))
    assert images.shape == (7, 5, 5, 3) and np.isfinite(images).all()


def test_a_network_is_given_the_noise_level_that_it_asks_for(pixelwise, tiny_text):
    """log-SNR 0 is t = 1/2 of the cosine schedule; a network whose output is the level shows which it got."""
    params = jax.jit(stage.init, static_argnums=0)(pixelwise, jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, params)
    params["Dense_0"]["kernel"] = params["Dense_0"]["kernel"].at[-1].set(1)
    params["Dense_1"]["kernel"] = params["Dense_1"]["kernel"].at[0].set(1)
    process = dataclasses.replace(pixelwise.process, prediction="x")
    made = stage.Stage(params, dataclasses.replace(pixelwise, process=process))
    x_hat = made.denoise(jnp.zeros((7, 5, 5, 3)), jnp.zeros(7), Cond(tiny_text))
    np.testing.assert_allclose(x_hat, 0.5 * jax.nn.sigmoid(0.5), rtol=1e-5)


def test_the_sigmoid_loss_is_divided_by_the_density_of_logit_normal_times(pixelwise, tiny_batch):
    params = jax.tree.map(jnp.ones_like, jax.jit(stage.init, static_argnums=0)(pixelwise, jax.random.key(0)))
    batch, of = batch_of(tiny_batch, 5), jax.jit(stage.image_losses, static_argnums=1)
    process = dataclasses.replace(pixelwise.process, loss_weight="sigmoid")
    uniform, normal = (
        dataclasses.replace(pixelwise, process=dataclasses.replace(process, times=times))
        for times in ("uniform", "logit_normal")
    )
    draws, before = stage.draw(normal, jax.random.key(0), 8), stage.draw(uniform, jax.random.key(0), 8).t
    np.testing.assert_allclose(draws.t, losses.logit_normal(before, 0.8, 0.8))
    expected = of(params, uniform, batch, draws)[0] / losses.logit_normal_density(draws.t, 0.8, 0.8)
    np.testing.assert_allclose(of(params, normal, batch, draws)[0], expected, rtol=1e-5)


@NETWORKS.register("pixelwise_with_variance")
@dataclasses.dataclass(frozen=True)
class WithVarianceConfig(PixelwiseConfig):
    predicts_variance = True


def test_a_network_that_predicts_its_variance(pixelwise, tiny_batch, tiny_text):
    """Its second half of channels is the log-variance, from -1 to 1, and has no loss."""
    config = validate(dataclasses.replace(pixelwise, network=WithVarianceConfig()))
    params = jax.jit(stage.init, static_argnums=0)(config, jax.random.key(0))
    assert params["Dense_1"]["kernel"].shape == (4, 6)
    params["Dense_1"]["bias"] = jnp.array([0.0, 0, 0, -1, 0, 1])
    params["Dense_1"]["kernel"] = params["Dense_1"]["kernel"].at[:, 3:].set(0)
    made = stage.Stage(params, config).denoise(jnp.ones((7, 5, 5, 3)), jnp.zeros(7), Cond(tiny_text))
    half = params | {"Dense_1": jax.tree.map(lambda w: w[..., :3], params["Dense_1"])}
    x_hat = stage.Stage(half, pixelwise).denoise(jnp.ones((7, 5, 5, 3)), jnp.zeros(7), Cond(tiny_text))
    np.testing.assert_allclose(made.x, x_hat, atol=1e-6)
    np.testing.assert_array_equal(made.log_variance, jnp.broadcast_to(jnp.array([0, 0.5, 1]), (7, 5, 5, 3)))
    images = sample_cascade((stage.Stage(params, config),), tiny_text, image_keys(0, 7), sampler="ddpm")
    assert images.shape == (7, 5, 5, 3) and np.isfinite(images).all()
    draws = stage.draw(config, jax.random.key(0), 8)
    gradient = jax.jit(jax.grad(stage.loss), static_argnums=1)(params, config, batch_of(tiny_batch, 5), draws)
    assert not gradient["Dense_1"]["bias"][3:].any() and gradient["Dense_1"]["bias"][:3].all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"low_res_size": 1}, "low_res_size must be None with network pixelwise, which takes no low_res_noised; got 1"),
        ({"control_channels": 1}, "control_channels must be 0 with network pixelwise, which takes no control; got 1"),
        ({"process": C.ProcessConfig()}, "process.cond_drop_prob must be 0 with network pixelwise, which .* got 0.1"),
        ({"network": PixelwiseConfig(-1)}, "network.width must be at least 0; got -1"),
        ({"network": NetworkConfig()}, "network must be a registered network, .* got a NetworkConfig: register it"),
    ],
)  # fmt: skip
def test_what_a_network_does_not_take_is_refused(pixelwise, changes, message):
    with pytest.raises(ValueError, match=message):
        validate(dataclasses.replace(pixelwise, **changes))
