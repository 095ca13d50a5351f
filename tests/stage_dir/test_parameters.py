"""Stages whose checkpoints hold adapters: they load as one with what the adapters are of, or say what has changed."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from imagen_jax import config as C
from imagen_jax import load_cascade, load_stage, save_pretrained, save_stage, stage
from imagen_jax.models import lora
from imagen_jax.stage_dir import checkpoint, exported, exported_params, loading, parameters
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.structs import TrainState
from tests.conftest import random_array

LORA = C.LoraConfig(rank=2, scale=0.5)


def adapters_of(params, seed=0):
    rng = np.random.default_rng(seed)
    new = jax.eval_shape(lambda: lora.init(jax.random.key(0), params, LORA.rank, LORA.targets))
    return jax.tree.map(lambda leaf: random_array(rng, leaf.shape), new)


def write_adapted(directory, config, base, adapters):
    """Write a stage as training by LoRA leaves it."""
    stage_dir.write_config(directory, config)
    position = {"next_index": 3, "base": parameters.fingerprint(config, base)}
    with checkpoint.Checkpoints(directory, config) as checkpoints:
        checkpoints.save(TrainState(jax.numpy.int32(3), adapters, adapters, {"none": jax.numpy.zeros(1)}), position)


def assert_same(one, other, tolerance=0.0):
    for (path, a), b in zip(jax.tree.leaves_with_path(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, atol=tolerance, err_msg=str(path))


@pytest.fixture
def adapted(tiny_stages, tmp_path):
    """(configuration, adapters) of a stage in runs/mine/base with adapters of the one in runs/first/base."""
    base = tiny_stages[0]
    save_stage(base, tmp_path / "first/base", step=7)
    config = dataclasses.replace(base.config, lora=LORA, init_from=f"{tmp_path}/first/base@7")
    adapters = adapters_of(base.params)
    write_adapted(tmp_path / "mine/base", config, base.params, adapters)
    return config, adapters


@pytest.mark.slow
def test_a_stage_of_adapters_loads_like_any_other(adapted, tiny_stages, tmp_path):
    config, adapters = adapted
    loaded, wanted = load_stage(tmp_path / "mine/base"), lora.merge(tiny_stages[0].params, adapters, 0.5)
    assert_same(loaded.params, wanted)
    assert loaded.config == dataclasses.replace(config, lora=C.LoraConfig())
    (again,), steps = load_cascade(tmp_path / "mine", return_steps=True)
    assert again.config == loaded.config and steps == {"base": 3}
    (unloaded,) = loading.read_cascade(tmp_path / "mine")
    assert unloaded.config == loaded.config
    save_stage(loaded, tmp_path / "merged/base")
    assert_same(load_stage(tmp_path / "merged/base").params, wanted)
    found = loading.load_adapted(tmp_path / "mine/base")
    assert_same(found.base, tiny_stages[0].params)
    assert_same(found.adapters, adapters)


@pytest.mark.slow
def test_adapters_of_adapters_load(adapted, tiny_stages, tmp_path):
    config, adapters = adapted
    base = load_stage(tmp_path / "mine/base").params
    config, more = dataclasses.replace(config, init_from=f"{tmp_path}/mine/base@3"), adapters_of(base, 1)
    write_adapted(tmp_path / "more/base", config, base, more)
    assert_same(load_stage(tmp_path / "more/base").params, lora.merge(base, more, 0.5))


@pytest.mark.slow
def test_adapters_of_an_exported_stage_load(tiny_stages, tmp_path):
    save_pretrained(tiny_stages, tmp_path / "export", dtype="int8")
    cascade = exported.read(tmp_path / "export")
    base = exported_params.read(tmp_path / "export", cascade, "sr16")
    sha256 = cascade.weights["sr16"].sha256
    config = dataclasses.replace(cascade.configs[1], lora=LORA, init_from=f"{tmp_path}/export@{sha256}")
    adapters = adapters_of(base)
    write_adapted(tmp_path / "mine/sr16", config, base, adapters)
    assert_same(load_stage(tmp_path / "mine/sr16").params, lora.merge(base, adapters, 0.5))
    save_pretrained(tiny_stages[:1], tmp_path / "other")
    shutil.rmtree(tmp_path / "export")
    (tmp_path / "other").rename(tmp_path / "export")
    with pytest.raises(ValueError, match="^--init-from must be a cascade with a stage sr16"):
        load_stage(tmp_path / "mine/sr16")
    shutil.rmtree(tmp_path / "export")
    save_pretrained(tiny_stages, tmp_path / "export", dtype="float32")
    with pytest.raises(ValueError, match=f"^weights of stage sr16 must have the recorded sha256 {sha256}"):
        load_stage(tmp_path / "mine/sr16")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "factor", "message"),
    [
        (None, 1, "must be where it was when the training of stage base began; got .*first/base: put it back"),
        (8, 1, r"must have the checkpoint of step 7, from which stage base began; got .* with those of steps \[8\]"),
        (7, 2, "must hold the parameters that the adapters of stage base were trained on; got others in .*base@7"),
    ],
)
def test_what_adapters_are_of_is_gone_or_another(adapted, tiny_stages, tmp_path, step, factor, message):
    shutil.rmtree(tmp_path / "first")
    if step is not None:
        others = stage.Stage(jax.tree.map(lambda leaf: factor * leaf, tiny_stages[0].params), tiny_stages[0].config)
        save_stage(others, tmp_path / "first/base", step=step)
    with pytest.raises(ValueError, match=f"^--init-from {message}") as error:
        load_cascade(tmp_path / "mine")
    assert "\n" not in str(error.value)


def test_checkpoints_of_adapters_are_small(adapted, tiny_stages, tmp_path):
    config, adapters = adapted
    folder = tmp_path / "mine/base/checkpoints/3"
    # The merged files. How many intermediate ones Orbax leaves in ocdbt.process_0 depends on when it was writing.
    held = sum(path.stat().st_size for path in folder.glob("*/d/*"))
    whole = sum(leaf.nbytes for leaf in flatten_dict(tiny_stages[0].params).values())
    small = sum(leaf.nbytes for leaf in flatten_dict(adapters).values())
    assert 0 < held < 4 * small < whole and small < whole / 5
