"""Fine-tuning: training that starts from the parameters of a trained stage."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest

from imagen_jax import config as C
from imagen_jax import load_stage, save_pretrained, save_stage, sharding
from imagen_jax.stage_dir import checkpoint, exported, parameters
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.training import initial, loop
from imagen_jax.training import state as states
from tests.conftest import TINY_BERT, write_shapes

pytestmark = pytest.mark.usefixtures("one_device")


def change(config, **fields):
    for path, value in fields.items():
        part, _, name = path.rpartition("__")
        value = dataclasses.replace(getattr(config, part), **{name: value}) if part else value
        config = dataclasses.replace(config, **{part or name: value})
    return config


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for name, num in (("few", 8), ("others", 12)):
        write_shapes(folder / name, train=num)
    return folder


@pytest.fixture(scope="module")
def config(data):
    return C.StageConfig(
        image_size=8,
        network=C.UNetConfig((8,), (1,), (False,), embedding=32),
        text=C.TextConfig(encoder=str(TINY_BERT), width=32, length=12),
        data=C.DataConfig(path=str(data / "few")),
        optim=C.OptimConfig(batch_size=8, warmup_steps=0, learning_rate=1e-3, ema_decay=0.9),
        run=C.RunConfig(num_steps=1, log_every=1, sample_every=0, validate_every=0),
    )


@pytest.fixture(scope="module")
def trained(config, tmp_path_factory):
    """The directory of a stage with checkpoints of steps 1 and 2, whose averaged parameters are 1 and 2 everywhere."""
    directory = tmp_path_factory.mktemp("trained") / "base"
    state = states.init_state(config, states.abstract_state(config, sharding.make_mesh()))
    stage_dir.write_config(directory, config)
    with checkpoint.Checkpoints(directory, config) as checkpoints:
        for step in (1, 2):
            ema_params = jax.tree.map(lambda leaf: 0 * leaf + step, state.ema_params)  # noqa: B023
            state = state.replace(step=jax.numpy.int32(step), ema_params=ema_params)
            checkpoints.save(state, {"next_index": step})
    return directory


@pytest.mark.slow
def test_training_starts_from_the_averaged_parameters_on_other_data(config, data, trained, tmp_path):
    """Other sizes and another optimiser, with a rate at which nothing moves."""
    tuned = change(
        config, init_from=f"{trained}@1", data__path=str(data / "others"), image_size=16, seed=3,
        optim__optimizer="adafactor", optim__learning_rate=1e-12, optim__weight_decay=0.0,
    )  # fmt: skip
    result = loop.train(tuned, tmp_path)
    assert int(result.state.step) == 1
    for leaf in jax.tree.leaves((result.state.params, result.state.ema_params)):
        np.testing.assert_allclose(leaf, 1.0, atol=1e-6)
    stored = load_stage(tmp_path / "base").config
    assert stored.init_from == f"{trained}@1" and stored.data.path == str(data / "others")
    # It continues without the option, and with it, and from nothing else.
    for given in ("", str(trained), f"{trained}@1"):
        assert initial.resolve(dataclasses.replace(tuned, init_from=given), tmp_path / "base") == tuned
    for given in (f"{trained}@2", str(tmp_path)):
        with pytest.raises(ValueError, match=rf"^--init-from must be {trained}@1 or left out to .* got {given}"):
            initial.resolve(dataclasses.replace(tuned, init_from=given), tmp_path / "base")


@pytest.mark.slow
def test_adapters_train_with_pictures_of_a_second_data_set(config, data, trained, tmp_path):
    """Its weight matters, and a run that is continued draws the same pictures of both."""
    prior = {"data__prior_path": str(data / "others"), "lora": C.LoraConfig(rank=1), "init_from": str(trained)}
    tuned = change(config, optim__prior_weight=0.5, **prior)
    loop.train(tuned, tmp_path / "halves")
    two = loop.train(change(tuned, run__num_steps=2), tmp_path / "halves").state
    whole = loop.train(change(tuned, run__num_steps=2), tmp_path / "whole").state
    jax.tree.map(np.testing.assert_array_equal, two.params, whole.params)
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "base/metrics.jsonl").read_text().splitlines()]
        for name in ("halves", "whole")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 2
    other = change(config, optim__prior_weight=0.0, **prior)
    loop.train(other, tmp_path / "other")
    (loss,) = [json.loads(line)["loss"] for line in (tmp_path / "other/base/metrics.jsonl").read_text().splitlines()]
    assert 0 < loss < losses[0][0]
    with pytest.raises(ValueError, match="^optim.batch_size must be divisible by 2 x devices x optim.accumulation = 2"):
        loop.train(change(tuned, optim__batch_size=7), tmp_path / "odd")


@pytest.mark.slow
def test_adapters_preserve_what_a_teacher_predicts(config, data, trained, tmp_path):
    """The loss of pictures of before begins at nothing, continues to the bit, and is reported."""
    tuned = change(
        config, data__prior_path=str(data / "others"), lora=C.LoraConfig(rank=1), init_from=str(trained),
        optim__objective="preservation", optim__teacher=str(trained), optim__prior_weight=2.0,
    )  # fmt: skip
    loop.train(tuned, tmp_path / "halves")
    two = loop.train(change(tuned, run__num_steps=2), tmp_path / "halves").state
    whole = loop.train(change(tuned, run__num_steps=2), tmp_path / "whole").state
    jax.tree.map(np.testing.assert_array_equal, two.params, whole.params)
    lines = [json.loads(line) for line in (tmp_path / "whole/base/metrics.jsonl").read_text().splitlines()]
    first, second = (line["preservation"] for line in lines)
    assert first < 1e-12 * lines[0]["loss"] and first < second
    made = load_stage(tmp_path / "whole/base")
    assert made.config.distilled == C.DistilledConfig() and made.config.optim.teacher == f"{trained}@2"


@pytest.mark.slow
def test_adapters_train_on_frozen_parameters_and_continue_to_the_bit(config, data, trained, tmp_path):
    """With validation and samples; each start reads the frozen parameters again, which must not have changed."""
    held = shutil.copytree(data / "few", tmp_path / "data")
    shutil.copytree(trained, tmp_path / "first")
    base = load_stage(tmp_path / "first", 2)
    run = {"validate_every": 2, "sample_every": 2, "validation_split": "train", "sample_images": 1}
    tuned = change(
        config, init_from=f"{tmp_path}/first@2", data__path=str(held), lora=C.LoraConfig(rank=2, scale=0.5),
        **{f"run__{name}": value for name, value in run.items()},
    )  # fmt: skip
    one = loop.train(tuned, tmp_path / "halves").state
    two = loop.train(change(tuned, run__num_steps=2), tmp_path / "halves").state
    whole = loop.train(change(tuned, run__num_steps=2), tmp_path / "whole").state
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    same((two.params, two.ema_params, two.opt_state), (whole.params, whole.ema_params, whole.opt_state))
    for state in (one, two):
        same(state.frozen, base.params)
    pair = two.params["conditioning"]["text"]
    assert float(abs(pair["b"]).max()) > 0 and set(two.params) == {"conditioning"}
    assert list((tmp_path / "halves/base/samples").iterdir())
    loaded = load_stage(tmp_path / "halves/base").params["conditioning"]["text"]["kernel"]
    own = two.ema_params["conditioning"]["text"]
    kernel = base.params["conditioning"]["text"]["kernel"] + 0.5 * np.asarray(own["a"]) @ np.asarray(own["b"])
    np.testing.assert_allclose(loaded, kernel, atol=1e-6)
    assert checkpoint.read_position(tmp_path / "halves/base", 2)["base"] is not None
    shutil.rmtree(tmp_path / "first")
    save_stage(load_stage(trained, 1), tmp_path / "first", step=2)
    with pytest.raises(ValueError, match="^--init-from must hold the parameters that the adapters of stage base were"):
        loop.train(change(tuned, run__num_steps=3), tmp_path / "halves")
    shutil.rmtree(tmp_path / "first")
    with pytest.raises(ValueError, match="^--init-from must be the directory of a trained stage"):
        loop.train(change(tuned, run__num_steps=3), tmp_path / "halves")


def test_adapters_need_a_stage(config, tmp_path):
    wrong = change(config, lora=C.LoraConfig(rank=2))
    with pytest.raises(ValueError, match="^--init-from must be given with --lora.rank 2; got no value: name the stage"):
        initial.resolve(wrong, tmp_path / "base")


@pytest.mark.slow
def test_training_starts_from_a_pretrained_cascade(config, trained, tmp_path, monkeypatch):
    """By its name, its directory, or one of its stages; what is recorded is the hash of the weight file."""
    save_pretrained((load_stage(trained),), tmp_path / "names/tiny", dtype="int8")
    monkeypatch.setenv("IMAGEN_JAX_PRETRAINED", str(tmp_path / "names"))
    sha256 = exported.read(tmp_path / "names/tiny").weights["base"].sha256
    directory = str(tmp_path / "names/tiny")
    shapes = states.abstract_state(config, sharding.make_mesh()).params
    for given in ("tiny", "tiny/base", directory, f"{directory}/base"):
        found = initial.resolve(dataclasses.replace(config, init_from=given), tmp_path / "base")
        assert found.init_from == f"{given}@{sha256}"
        loaded = parameters.initial(found, shapes)
        for leaf, shape in zip(jax.tree.leaves(loaded), jax.tree.leaves(shapes), strict=True):
            assert leaf.sharding == shape.sharding
            np.testing.assert_allclose(leaf, 2.0, rtol=1e-6)
    stage_dir.write_config(tmp_path / "run/base", found)  # a run that has begun
    for given in ("", f"{directory}/base", directory, found.init_from):
        assert initial.resolve(dataclasses.replace(config, init_from=given), tmp_path / "run/base") == found
    for given, message in (
        ("tiny/sr16", "must be a cascade with a stage sr16, or CASCADE/STAGE; got tiny/sr16 with stages base"),
        ("tony", "must be the directory of a trained stage, or .*; got tony: pretrained are .*tiny"),
        (f"tiny@{'0' * 64}", f"must name a checkpoint of the stage; got .*, which has those of sha256 .'{sha256}'"),
        ("tiny@3", "must name a checkpoint of the stage; got tiny@3"),
    ):
        with pytest.raises(ValueError, match=f"^--init-from {message}"):
            initial.resolve(dataclasses.replace(config, init_from=given), tmp_path / "base")
    save_pretrained((load_stage(trained, 1),), tmp_path / "others/tiny")
    monkeypatch.setenv("IMAGEN_JAX_PRETRAINED", str(tmp_path / "others"))
    with pytest.raises(ValueError, match=f"^weights of stage base must have the recorded sha256 {sha256}"):
        parameters.initial(dataclasses.replace(config, init_from=f"tiny@{sha256}"), shapes)


PRESET = """
from pathlib import Path
import json
from imagen_jax.config import from_dict

def get_config():
    return (from_dict(json.loads(Path(__file__).with_name("config.json").read_text())),)
"""


@pytest.mark.slow
def test_train_refuses_to_continue_a_saved_stage(config, trained, tmp_path, run_script):
    save_stage(load_stage(trained), tmp_path / "run/base")
    before = sorted(tmp_path.rglob("*"))
    preset = tmp_path / "run/base/preset.py"  # beside the stage's config.json
    preset.write_text(PRESET)
    ran = run_script("train.py", "--preset", preset, "--stage", "base", "--workdir", tmp_path / "run")
    preset.unlink()
    message = "--workdir must hold checkpoints with a state of the optimiser, to continue from; got"
    assert ran.status == 2 and message in ran.err and f"--init-from {tmp_path}/run/base." in ran.err, ran.err
    assert sorted(tmp_path.rglob("*")) == before


def test_the_newest_checkpoint_is_taken_and_recorded(config, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(trained.parent)
    found = initial.resolve(dataclasses.replace(config, init_from="base"), tmp_path / "base")
    assert found.init_from == f"{trained}@2"
    shapes = states.abstract_state(found, sharding.make_mesh()).params
    assert {float(leaf.max()) for leaf in jax.tree.leaves(parameters.initial(found, shapes))} == {2.0}


def test_a_stage_that_began_from_random_parameters_keeps_to_them(config, trained):
    with pytest.raises(ValueError, match="--init-from must be left out to continue the stage in"):
        initial.resolve(dataclasses.replace(config, init_from=f"{trained}@1"), trained)


@pytest.mark.parametrize(
    ("changes", "given", "message"),
    [
        ({}, "nowhere", "must be the directory of a trained stage, or DIR@STEP for one checkpoint of it; got nowhere"),
        ({}, "{trained}@newest", "must be the directory of a trained stage, or DIR@STEP"),
        ({}, "{trained}/..", "must be the directory of a trained stage, .*: name the stage in it, .*/base"),
        ({}, "{trained}@7", r"must name a checkpoint of the stage; got .*@7, which has those of steps \[1, 2\]"),
        ({}, "ftp://there", "must be a path, or a URL of gs:// or s3://"),
        ({"network__channels": (16,)}, "{trained}", r"with network.channels \[8\] instead of \[16\]: give"),
        ({"text__width": 64}, "{trained}", "architecture of stage base; got .* with text.width 32 instead of 64"),
        ({"low_res_size": 4}, "{trained}", "with low_res_size None instead of 4"),
        ({"network": C.EfficientUNetConfig()}, "{trained}", "with .*network.kind unet instead of efficient_unet"),
    ],
)
def test_what_training_cannot_start_from_is_one_line(config, trained, tmp_path, changes, given, message):
    wrong = change(config, init_from=given.format(trained=trained), **changes)
    with pytest.raises(ValueError, match=f"^--init-from .*{message}") as error:
        initial.resolve(wrong, tmp_path / "base")
    assert "\n" not in str(error.value)


def test_other_captions_or_predictions_are_said(config, trained, tmp_path, capsys):
    other = change(config, init_from=str(trained), process__prediction="eps")
    initial.resolve(other, tmp_path / "base")
    assert "process.prediction v instead of eps" in capsys.readouterr().err
