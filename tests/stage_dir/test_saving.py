"""Stages saved from Python are read as trained ones are, and nothing that is there is overwritten."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import Stage, load_cascade, load_stage, save_cascade, save_pretrained, save_stage
from imagen_jax.stage_dir import checkpoint, checkpoint_files
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.storage import files


def assert_same(one, other):
    assert one.config == other.config
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.slow
def test_a_saved_cascade_loads(tiny_stages, tmp_path):
    save_cascade(tiny_stages, tmp_path / "run")
    for saved, loaded in zip(tiny_stages, load_cascade(tmp_path / "run"), strict=True):
        assert_same(saved, loaded)
    with pytest.raises(ValueError, match=f"directory must hold no stages yet; got {tmp_path}/run with base, sr16"):
        save_cascade(tiny_stages[:1], str(tmp_path / "run"))


def test_a_saved_stage_loads_by_its_step(tiny_stages, tmp_path):
    host = tiny_stages[0].replace(params=jax.tree.map(np.asarray, tiny_stages[0].params))
    save_stage(host, tmp_path / "base", step=7)
    assert_same(tiny_stages[0], load_stage(tmp_path / "base", 7))
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == [".lock", "checkpoints", "config.json"]


def test_another_stage_is_not_overwritten(tiny_stages, tmp_path):
    first, second = tiny_stages
    save_stage(first, tmp_path)
    for other in (first, second):
        with pytest.raises(ValueError, match="directory must hold no stage yet; got .*: name another"):
            save_stage(other, tmp_path)
    os.unlink(tmp_path / "config.json")  # as of a run that lost it
    with pytest.raises(ValueError, match="directory must hold no stage yet"):
        save_stage(first, tmp_path)
    assert checkpoint_files.list_steps(tmp_path) == [0]


def test_a_directory_of_a_run_is_not_written_to(tiny_stages, tmp_path):
    with stage_dir.lock_directory(tmp_path), pytest.raises(ValueError, match="must not be in use by another run"):
        save_stage(tiny_stages[0], tmp_path)


def test_a_save_that_fails_leaves_no_stage(tiny_stages, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "save_arguments", fail)
        with pytest.raises(OSError, match="No space left"):
            save_stage(tiny_stages[0], tmp_path / "base")
    assert not (tmp_path / "base/config.json").exists()
    save_stage(tiny_stages[0], tmp_path / "base")
    assert_same(tiny_stages[0], load_stage(tmp_path / "base"))


def change(stage, params=None, **fields):
    return Stage(params or stage.params, dataclasses.replace(stage.config, **fields))


WRONG = {
    "no stage": (lambda stage: stage.params, "stage must be a Stage; got"),
    "no parameters": (lambda stage: stage.replace(params=None), r"stage.params\[.*\] must be float32 .*; got nothing"),
    "another network": (lambda stage: change(stage, image_channels=1), r"stage.params\[.*\] must be float32"),
    "half precision": (
        lambda stage: change(stage, jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), stage.params)),
        r"must be float32 \[.*\]; got bfloat16.*: give the parameters of .* stage base",
    ),
    "shapes alone": (
        lambda stage: change(stage, jax.eval_shape(lambda: stage.params)), r"must be float32 \[.*\]; got",
    ),
    "further parameters": (
        lambda stage: change(stage, {**stage.params, "lora": jnp.zeros(3)}), r"params\['lora'\] must not be there",
    ),
    "a wrong configuration": (lambda stage: change(stage, seed=-1), "seed must be at least 0; got -1"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_stage_is_refused(tiny_stages, tmp_path, make, message):
    with pytest.raises(ValueError, match=message):
        save_stage(make(tiny_stages[0]), tmp_path / "base")
    assert not (tmp_path / "base").exists()


@pytest.mark.parametrize(
    ("directory", "message"),
    [("file", "directory must be a directory"), (3, "directory must be a path"), ("hdfs://a/b", "gs:// or s3://")],
)
def test_where_nothing_can_be_saved(tiny_stages, tmp_path, monkeypatch, directory, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    for save, saved in ((save_stage, tiny_stages[0]), (save_cascade, tiny_stages)):
        with pytest.raises(ValueError, match=message):
            save(saved, directory)
    with pytest.raises(ValueError, match="step must be a whole number"):
        save_stage(tiny_stages[0], tmp_path / "base", step=1.5)


@pytest.mark.slow
def test_what_is_no_cascade_is_refused(tiny_stages, tmp_path):
    for stages, message in (
        ((), "stages must be a sequence of at least one Stage"),
        (tiny_stages[0], "stages must be a sequence of at least one Stage"),
        ((tiny_stages[0], None), r"stages\[1\] must be a Stage; got None"),
        ((tiny_stages[0],) * 2, "^stage names must be distinct; got base, base: give each once"),
        (tiny_stages[::-1], "low_res_size of stage base must be 16"),
    ):
        with pytest.raises(ValueError, match=message):
            save_cascade(stages, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "float16"}, "dtype must be one of bfloat16, float32, int8, int4; got 'float16'"),
        ({"card": {"title": "Tiny"}}, "card must be a Card; got"),
        ({"notice": ""}, "NOTICE must not be empty"),
        ({"steps": 5}, "steps must be a mapping from names of stages; got 5"),
        ({"steps": {"nope": 5}}, "steps must be one of base; got 'nope'"),
        ({"steps": {"base": -1}}, r"steps\['base'\] must be at least 0; got -1"),
        ({"steps": {"base": 2.5}}, r"steps\['base'\] must be a whole number .*; got 2.5"),
        ({"stages": ()}, "stages must be a sequence of at least one Stage"),
        ({"directory": 3}, "directory must be a path"),
        ({"directory": "full"}, "directory must be a new directory; got .*/full, which has files: name another"),
    ],
)
def test_what_cannot_be_exported_is_refused(tiny_stages, tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    with pytest.raises(ValueError, match=message):
        save_pretrained(**{"stages": tiny_stages[:1], "directory": "new"} | options)
    assert os.listdir(tmp_path) == ["full"] and os.listdir("full") == ["file"]


def test_an_export_that_fails_leaves_nothing(tiny_stages, tmp_path, monkeypatch):
    written = files.write

    def fail(path, content):
        if path.name == "README.md":  # after the weights
            raise OSError(28, "No space left on device", str(path))
        written(path, content)

    monkeypatch.setattr(files, "write", fail)
    with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/new/README.md'"):
        save_pretrained(tiny_stages[:1], tmp_path / "new")
    assert os.listdir(tmp_path) == []


def test_training_does_not_continue_from_averaged_parameters_alone(tiny_stages, tmp_path):
    save_stage(tiny_stages[0], tmp_path)
    with pytest.raises(ValueError, match=f"--workdir must hold .*: give another --workdir, and --init-from {tmp_path}"):
        checkpoint_files.check_continuable(tmp_path)
    checkpoint_files.check_continuable(tmp_path / "new")
    config = tiny_stages[0].config
    with checkpoint.Checkpoints(tmp_path, config) as checkpoints:
        assert checkpoints.latest_step == 0
