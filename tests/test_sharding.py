"""Arrays on meshes: the same images, however parameters, batches and rows are split."""

import dataclasses

import jax
import numpy as np
import pytest

from imagen_jax import image_keys, sample_cascade, sharding


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 7, 16])
@pytest.mark.parametrize("fsdp", [1, 4])
def test_images_on_a_mesh_are_the_same_to_1e_5(tiny_stages, make_request, sixteen_images, num, fsdp, monkeypatch):
    monkeypatch.setattr(sharding, "_MIN_SHARDED_BYTES", 256)
    mesh = sharding.make_mesh(fsdp)
    stages = sharding.shard_params(tiny_stages, mesh)
    inputs = sharding.pad_batch(make_request(num), 16, mesh)
    out = sample_cascade(stages, *inputs)
    assert len(out.sharding.device_set) == 8 and out.addressable_shards[0].data.shape[0] == 2
    np.testing.assert_allclose(np.asarray(out)[:num], sixteen_images[:num], atol=1e-5)
    biggest = max(jax.tree.leaves(stages), key=lambda leaf: leaf.size)
    assert biggest.addressable_shards[0].data.size * fsdp == biggest.size


@pytest.mark.slow
def test_rows_of_an_image_can_be_split_over_devices(tiny_stages, make_request, sixteen_images):
    mesh = sharding.make_mesh(height=4)
    with jax.set_mesh(mesh):
        stages = sharding.replicate(tiny_stages, mesh)
        inputs = sharding.pad_batch(make_request(2), 2, mesh)
        run = jax.jit(sample_cascade)
        out = run(stages, *inputs)
        text = run.lower(stages, *inputs).compile().as_text()
    np.testing.assert_allclose(out, sixteen_images[:2], atol=1e-5)
    assert "collective-permute" in text  # convolutions exchange the rows at the borders
    assert out.addressable_shards[0].data.shape == (1, 4, 16, 3)


@pytest.mark.slow
def test_rows_that_cannot_be_split(tiny_stages, make_request):
    mesh = sharding.make_mesh(height=8)
    odd = dataclasses.replace(tiny_stages[0].config, image_size=12)
    stage = type(tiny_stages[0])(tiny_stages[0].params, odd)
    with jax.set_mesh(mesh), pytest.raises(ValueError, match="height must divide .* 12; got 8"):
        sample_cascade((stage,), *make_request(1))


@pytest.mark.parametrize("ways", [{"fsdp": 3}, {"height": 5}, {"fsdp": 4, "height": 4}])
def test_a_mesh_that_does_not_fit(ways):
    with pytest.raises(ValueError, match="must divide the number of devices 8"):
        sharding.make_mesh(**ways)


def test_a_mesh_has_devices():
    with pytest.raises(ValueError, match="devices must be a list of at least one device; got"):
        sharding.make_mesh(devices=[])


def test_bytes_of_a_state():
    mesh = sharding.make_mesh(4)
    kernel = jax.ShapeDtypeStruct((512, 1024), np.float32)
    bias = jax.ShapeDtypeStruct((1024,), np.float32)
    tree = {"kernel": kernel, "bias": bias}
    placed = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        tree,
        sharding.state_sharding(tree, mesh),
    )
    total, per_device, replicated = sharding.byte_counts(placed)
    assert total == 4 * (512 * 1024 + 1024) and per_device == 4 * (512 * 1024 // 4 + 1024)
    assert replicated == pytest.approx(4096 / total)


def test_keys_are_split_as_other_rows_are():
    mesh, keys = sharding.make_mesh(), image_keys(3, 8)
    split = sharding.shard_batch({"keys": keys}, mesh)["keys"]
    assert split.sharding.is_equivalent_to(sharding.batch_sharding(mesh), 1) and split.dtype == keys.dtype
    np.testing.assert_array_equal(jax.random.key_data(split), jax.random.key_data(keys))
