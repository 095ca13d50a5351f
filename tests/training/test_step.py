import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import resize, sharding, stage
from imagen_jax.config import LoraConfig
from imagen_jax.training import optim, packing
from imagen_jax.training import state as states
from imagen_jax.training.step import make_train_step


@functools.lru_cache
def compiled(config, num_devices, fsdp, height):
    """(mesh, init, step) of a configuration, of states as a training loop holds them; compiling is what these tests
    spend their time on."""
    mesh = sharding.make_mesh(fsdp, devices=jax.devices()[:num_devices], height=height)
    abstract = states.abstract_state(config, mesh)
    packed = states.packed_shapes(config, abstract)
    step = jax.jit(make_train_step(config, mesh), donate_argnums=0, out_shardings=(states.shardings(packed), None))
    new = jax.jit(functools.partial(states.new_state, config), out_shardings=states.shardings(abstract))
    return mesh, lambda: packing.pack_arrays(new(), packed), step


def run(config, batch, steps=3, num_devices=1, fsdp=1, height=1):
    mesh, init, step = compiled(config, num_devices, fsdp, height)
    state, losses = init(), []
    for _ in range(steps):
        state, metrics = step(state, sharding.shard_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return packing.unpack_arrays(state), losses


def at_step(state, number):
    """The state as if it were of another step, which has noise of its own."""
    return state.replace(step=jax.device_put(jnp.int32(number), state.step.sharding))


def change(config, **optim_fields):
    return dataclasses.replace(config, optim=dataclasses.replace(config.optim, **optim_fields))


@pytest.fixture(scope="module")
def configs(tiny_configs):
    """A large eps, since Adam turns the rounding of a gradient that is zero (of a key's bias) into a whole step."""
    return [change(config, eps=1e-3) for config in tiny_configs]


@pytest.fixture(scope="module")
def batches(tiny_configs, tiny_batch):
    return [tiny_batch | {"x": resize.area(tiny_batch["x"], c.image_size)} for c in tiny_configs]


def assert_same(a, b, tolerance):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_training_on_a_batch_lowers_its_loss(configs, batches, index):
    config, batch = configs[index], batches[index]
    draws = stage.draw(config, jax.random.key(0), 8)  # the same noise before and after
    loss_of = jax.jit(functools.partial(stage.loss, config=config, batch=batch, draws=draws, train=False))
    before, _ = run(config, batch, steps=0)
    after, _ = run(config, batch, steps=60)
    assert float(loss_of(after.params)) < 0.85 * float(loss_of(before.params))


@pytest.mark.slow
def test_fsdp_shards_the_state(configs, batches, monkeypatch):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    state, _ = run(configs[1], batches[1], num_devices=8, fsdp=4)
    kernel = state.params["down_0_block_0"]["conv_1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // 4
    moments = jax.tree.leaves(state.opt_state)
    assert any(m.size and m.addressable_shards[0].data.size < m.size for m in moments)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("index", "ways"),
    [(0, {"fsdp": 2, "height": 2}), (1, {}), (1, {"fsdp": 8}), (1, {"fsdp": 4})],
)
def test_every_mesh_gives_the_same_losses_and_parameters(configs, batches, monkeypatch, index, ways):
    """8 data-parallel, 8 FSDP, 2x4 and rows of the image in parts, to 1e-5 of one device."""
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    config = configs[index]
    one, losses = run(config, batches[index])
    state, sharded_losses = run(config, batches[index], num_devices=8, **ways)
    np.testing.assert_allclose(losses, sharded_losses, rtol=1e-5)
    assert_same((one.params, one.ema_params), (state.params, state.ema_params), 1e-5)
    assert all(leaf.sharding.num_devices == 8 for leaf in jax.tree.leaves(state))


@pytest.mark.slow
def test_crops_train_on_a_part_of_the_image(configs, batches):
    """A crop has the low-res image that the whole image's has there."""
    config = dataclasses.replace(configs[1], image_size=32, low_res_size=16, crop_size=16)
    draws = stage.draw(config, jax.random.key(0), 8)
    params = jax.jit(functools.partial(stage.init, config))(jax.random.key(0))
    same = dataclasses.replace(config, image_size=16, low_res_size=8, crop_size=None)
    of = lambda c: float(
        jax.jit(functools.partial(stage.loss, config=c))(params, batch=batches[1], draws=draws)
    )
    np.testing.assert_allclose(of(config), of(same), rtol=1e-6)  # the cosine schedule is not shifted


@pytest.mark.slow
def test_accumulation_changes_nothing(configs, batches):
    whole, losses = run(configs[0], batches[0], steps=2)
    parts, part_losses = run(change(configs[0], accumulation=4), batches[0], steps=2)
    np.testing.assert_allclose(losses, part_losses, rtol=1e-5)
    assert_same(whole.ema_params, parts.ema_params, 1e-5)


@pytest.mark.slow
def test_steps_differ_in_their_noise_and_repeat_exactly(configs, batches):
    """From the same parameters: the step alone decides on the noise."""
    mesh, init, step = compiled(configs[0], 1, 1, 1)
    batch = sharding.shard_batch(batches[0], mesh)
    losses = [float(step(at_step(init(), number), batch)[1]["loss"]) for number in (0, 1, 2, 0, 1, 2)]
    assert len(set(losses)) == 3 and losses[:3] == losses[3:]


@pytest.mark.slow
def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(configs, batches):
    config = configs[1]
    mesh, init, step = compiled(config, 1, 1, 1)
    broken = batches[1] | {"x": np.where(np.arange(8).reshape(8, 1, 1, 1) == 3, np.nan, batches[1]["x"])}
    state, metrics = step(init(), sharding.shard_batch(broken, mesh))
    assert int(metrics["skipped"]) == 1 and int(state.step) == 1
    before = init()
    for part in ("params", "ema_params", "opt_state"):
        assert_same(getattr(state, part), getattr(before, part), 0)
    state, metrics = step(state, sharding.shard_batch(batches[1], mesh))
    assert int(metrics["skipped"]) == 0 and int(state.step) == 2 and np.isfinite(metrics["loss"])


@pytest.mark.slow
def test_the_average_warms_up(configs, batches):
    mesh, init, step = compiled(configs[0], 1, 1, 1)
    state, batch = init(), sharding.shard_batch(batches[0], mesh)
    expected = jax.device_get(state.ema_params)
    for done in range(3):
        decay = min(0.9, (1 + done) / (10 + done))
        state, _ = step(state, batch)
        expected = jax.tree.map(lambda e, p: decay * e + (1 - decay) * p, expected, jax.device_get(state.params))  # noqa: B023
    assert_same(state.ema_params, expected, 1e-6)


@pytest.mark.slow
def test_frozen_parameters_do_not_move_and_have_no_optimiser_state(configs, batches):
    config = configs[0]
    mesh, init, _ = compiled(config, 1, 1, 1)
    whole = packing.unpack_arrays(init())
    trainable, frozen = {"conv_out": whole.params["conv_out"]}, dict(whole.params)
    del frozen["conv_out"]
    opt_state = optim.make_optimizer(config.optim).init(trainable)
    state = whole.replace(
        params=trainable, ema_params=jax.tree.map(jnp.copy, trainable), opt_state=opt_state, frozen=frozen
    )
    step = jax.jit(make_train_step(config, mesh))
    after, metrics = step(state, sharding.shard_batch(batches[0], mesh))
    assert_same(after.frozen, frozen, 0)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert states.count(after.opt_state) < 3 * states.count(trainable)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, trainable)
    assert all(jax.tree.leaves(moved))
    assert jax.tree.structure(after.merged(after.params)) == jax.tree.structure(whole.params)
    loss = jax.jit(stage.loss, static_argnums=1)(whole.params, config, batches[0], _draws_of_step_0(config))
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


def _draws_of_step_0(config):
    root = stage.named_key(jax.random.key(config.seed), "train")
    return stage.draw(config, jax.random.fold_in(root, 0), config.optim.batch_size)


def test_batches_that_do_not_divide_are_refused():
    mesh = sharding.make_mesh()
    with pytest.raises(ValueError, match=r"devices x optim.accumulation = 8 x 2; got 24: use 32"):
        sharding.check_batch(24, 2, mesh)
    with pytest.raises(ValueError, match="fsdp must divide the number of devices 8; got 3"):
        sharding.make_mesh(fsdp=3)


@pytest.mark.slow
def test_parts_of_a_batch_add_up(configs, tiny_batch):
    optim = dataclasses.replace(configs[1].optim, accumulation=4)
    config = dataclasses.replace(configs[1], optim=optim)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    objective = lambda params, batch, draws: (params["stem"]["kernel"].sum(), {"a": (batch["x"].sum(), 1.0)})
    step = jax.jit(make_train_step(config, mesh, objective))
    _, metrics = step(states.init_state(config, states.abstract_state(config, mesh)), tiny_batch)
    total, count = metrics["sums"]["a"]
    np.testing.assert_allclose((total, count), (tiny_batch["x"].sum(), 4), rtol=1e-4)


@pytest.mark.slow
def test_parts_keep_pictures_of_a_prior_in_their_places(configs, tiny_batch):
    """Every other row, in each part of a batch."""
    config = change(configs[1], accumulation=2)
    marked = tiny_batch | {"weight": np.where(np.arange(len(tiny_batch["x"])) % 2, 3.0, 1.0).astype("float32")}
    weights = lambda params, batch, draws: (params["stem"]["kernel"].sum(), {"a": (batch["weight"][1::2].sum(), 1.0)})
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    step = jax.jit(make_train_step(config, mesh, weights))
    _, metrics = step(states.init_state(config, states.abstract_state(config, mesh)), marked)
    assert metrics["sums"]["a"][0] == marked["weight"][1::2].sum()


@pytest.mark.slow
def test_adapters_train_as_one_device_does_on_every_mesh(configs, batches, monkeypatch):
    """Muon sees them alone; the frozen parameters, which are sharded, do not move."""
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    config = dataclasses.replace(configs[0], lora=LoraConfig(rank=2, targets="all"))
    config = change(config, optimizer="muon")
    before = packing.unpack_arrays(compiled(config, 1, 1, 1)[1]())
    one, losses = run(config, batches[0], steps=2)
    state, sharded_losses = run(config, batches[0], steps=2, num_devices=8, fsdp=4)
    np.testing.assert_allclose(losses, sharded_losses, rtol=1e-5)
    assert_same((one.params, one.ema_params), (state.params, state.ema_params), 1e-4)
    assert_same(one.frozen, before.frozen, 0)
    assert_same(state.frozen, before.frozen, 0)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), one.params, before.params)
    assert all(pair["b"] for pair in (moved["conv_out"], moved["down_0_block_0"]["attention"]["out"]))
    assert states.count(one.opt_state) < 3 * states.count(one.params)
