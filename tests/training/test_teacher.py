"""Teachers: found, checked, recorded, read again at every start; and a stage that learns from one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from imagen_jax import config as C
from imagen_jax import image_keys, load_stage, sample_stage, save_pretrained, save_stage, sharding
from imagen_jax.config.validation import validate_for_training
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.structs import TextCond
from imagen_jax.training import loop, teacher
from tests.conftest import TINY_BERT, write_shapes
from tests.sampling.conftest import with_random_params

pytestmark = pytest.mark.usefixtures("one_device")


def change(config, **fields):
    for path, value in fields.items():
        part, _, name = path.rpartition("__")
        value = dataclasses.replace(getattr(config, part), **{name: value}) if part else value
        config = dataclasses.replace(config, **{part or name: value})
    return config


@pytest.fixture(scope="module")
def trained(tiny_stages, tmp_path_factory):
    """The directory of a super-resolution stage of random parameters, at step 5."""
    directory = tmp_path_factory.mktemp("trained") / "sr16"
    save_stage(tiny_stages[1], directory, step=5)
    return directory


@pytest.fixture
def student(tiny_configs, trained):
    return validate_for_training(
        change(
            tiny_configs[1], optim__objective="progressive", optim__teacher=str(trained), distilled__steps=2,
            network=dataclasses.replace(tiny_configs[1].network, embedding=16),
        )
    )  # fmt: skip


def test_a_teacher_is_recorded_with_its_guidance_and_read_as_it_is(student, trained, tiny_stages, tmp_path):
    """Also by a student with another network."""
    found = teacher.resolve(student, tmp_path / "sr16")
    assert found == change(student, optim__teacher=f"{trained}@5", distilled__guidance_scale=3.0)
    loaded = teacher.load(found, sharding.make_mesh())
    assert loaded.config == tiny_stages[1].config
    for ours, theirs in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(tiny_stages[1].params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    other = teacher.resolve(change(student, distilled__guidance_scale=1.5), tmp_path / "sr16")
    assert other.distilled.guidance_scale == 1.5
    stage_dir.write_config(tmp_path / "sr16", found)
    for given in (str(trained), f"{trained}@5"):
        assert teacher.resolve(change(student, optim__teacher=given), tmp_path / "sr16") == found
    for given in (f"{trained}@4", str(tmp_path)):
        with pytest.raises(ValueError, match=f"^--optim.teacher must be {trained}@5 or left out to continue"):
            teacher.resolve(change(student, optim__teacher=given), tmp_path / "sr16")


def test_a_pretrained_stage_teaches(student, tiny_stages, tmp_path):
    save_pretrained(tiny_stages, tmp_path / "tiny", dtype="float32")
    found = teacher.resolve(change(student, optim__teacher=str(tmp_path / "tiny")), tmp_path / "sr16")
    assert found.optim.teacher.startswith(f"{tmp_path}/tiny@")
    loaded = teacher.load(found, sharding.make_mesh())
    assert jax.tree.structure(loaded.params) == jax.tree.structure(tiny_stages[1].params)
    (tmp_path / "tiny").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="^--optim.teacher must be where it was when training began; got .*/tiny"):
        teacher.load(found, sharding.make_mesh())


def test_a_distilled_teacher_has_its_guidance_built_in(student, tiny_stages, tmp_path):
    """The next student halves its steps, and records the guidance of the first teacher."""
    sampling = C.SamplingConfig(steps=4, guidance_scale=1.0)
    made = C.DistilledConfig(steps=4, substeps=2, guidance_scale=3.0)
    config = change(tiny_stages[1].config, distilled=made, sampling=sampling)
    save_stage(tiny_stages[1].replace(config=config), tmp_path / "four")
    student = change(student, optim__teacher=str(tmp_path / "four"))
    assert teacher.resolve(student, tmp_path / "sr16").distilled == C.DistilledConfig(2, 2, 3.0)
    for name, value, message in (
        ("steps", 3, "--distilled.steps must divide into steps of 2 of the 4 .*; got 3 x 2: change it"),
        ("guidance_scale", 5.0, "--distilled.guidance-scale must be 3, which the teacher has built in; got 5.0"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            teacher.resolve(change(student, **{f"distilled__{name}": value}), tmp_path / "sr16")


def test_a_distilled_stage_preserves_nothing(student, tiny_stages, trained, tmp_path):
    """It is right at its own few levels alone."""
    tuned = change(
        student, optim__objective="preservation", distilled__steps=0, data__prior_path="prior",
        sampling=tiny_stages[1].config.sampling,
    )  # fmt: skip
    found = teacher.resolve(validate_for_training(tuned), tmp_path / "sr16")
    assert found == change(tuned, optim__teacher=f"{trained}@5")
    made = C.DistilledConfig(steps=4, guidance_scale=3.0)
    config = change(tiny_stages[1].config, distilled=made, sampling=C.SamplingConfig(steps=4, guidance_scale=1.0))
    save_stage(tiny_stages[1].replace(config=config), tmp_path / "four")
    message = "^--optim.teacher must be a stage that is not distilled, for objective 'preservation'; got .*, of 4 steps"
    with pytest.raises(ValueError, match=message):
        teacher.resolve(change(tuned, optim__teacher=str(tmp_path / "four")), tmp_path / "sr16")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optim__teacher": "nowhere"}, "must be the directory of a trained stage, or DIR@STEP .*; got nowhere"),
        ({"optim__teacher": "ftp://there"}, "must be a path, or a URL of gs:// or s3://"),
        ({"optim__teacher": "{trained}@7"}, r"must name a checkpoint of the stage; got .*@7, .* steps \[5\]"),
        ({"image_size": 32}, "must be a stage that makes what stage sr16 makes; got .* image_size 16 instead of 32"),
        ({"low_res_size": None}, "must be .*; got .* with low_res_size 8 instead of None"),
        ({"text__width": 64}, "must be .*; got .* with text.width 12 instead of 64: take another stage"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(student, trained, tmp_path, changes, message):
    changes = {n: v.format(trained=trained) if n == "optim__teacher" else v for n, v in changes.items()}
    with pytest.raises(ValueError, match=f"^--optim.teacher {message}") as error:
        teacher.resolve(change(student, **changes), tmp_path / "sr16")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("sampling", "scale", "message"),
    [
        ({"guidance": "cfg++", "guidance_scale": 0.5}, None, "must be sampled with guidance that .* got guidance 'c"),
        ({"guidance_low": 1.0}, None, "must be sampled with .* x_hat alone; got guidance_low: change sampling in the"),
        ({"guidance_scale": 1.0}, 2.0, r"with --distilled.guidance-scale 2: guidance_scale must be 1 .* no null"),
    ],
)
def test_guidance_that_no_student_can_learn_is_refused(student, trained, tmp_path, sampling, scale, message):
    config = change(stage_dir.read_config(trained), sampling=C.SamplingConfig(**sampling))
    config = change(config, process__cond_drop_prob=0.1 if scale is None else 0.0)
    stage_dir.write_config(tmp_path / "sr16", config)
    (tmp_path / "sr16" / "checkpoints").symlink_to(trained / "checkpoints")
    student = change(student, optim__teacher=str(tmp_path / "sr16"), distilled__guidance_scale=scale)
    with pytest.raises(ValueError, match=f"^--optim.teacher {message}"):
        teacher.resolve(student, tmp_path / "student")


@pytest.mark.slow
@pytest.mark.parametrize("objective", ["progressive", "moment_matching"])
def test_a_stage_is_distilled_continued_and_sampled(tiny_configs, tmp_path, objective):
    """From the parameters of its teacher, which is read again when it continues; it is sampled in its steps alone."""
    data = write_shapes(tmp_path / "data", train=8)
    base = change(
        tiny_configs[0], text=C.TextConfig(encoder=str(TINY_BERT), width=32, length=12), network__attention=(False,),
        data__path=str(data), run=C.RunConfig(num_steps=2, log_every=1, sample_every=0, validate_every=0),
        optim__learning_rate=1e-3,
    )  # fmt: skip
    save_stage(with_random_params(base), tmp_path / "teacher/base", step=2)
    student = change(
        base, optim__objective=objective, optim__teacher=str(tmp_path / "teacher/base"), distilled__steps=2,
        init_from=str(tmp_path / "teacher/base"), sampling=C.SamplingConfig(sampler="heun", guidance_scale=7.0),
    )  # fmt: skip
    student = change(student, run__num_steps=1)
    result = loop.train(student, tmp_path / "student")
    assert np.isfinite(jax.tree.leaves(result.state.params)[0]).all()
    result = loop.train(change(student, run__num_steps=2), tmp_path / "student")
    assert int(result.state.step) == 2
    whole = loop.train(change(student, run__num_steps=2), tmp_path / "at_once")
    jax.tree.map(np.testing.assert_array_equal, result.state, whole.state)
    assert (result.state.auxiliary is not None) == (objective == "moment_matching")
    lines = [json.loads(line) for line in (tmp_path / "student/base/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and all(line["loss"] > 0 for line in lines)
    made = load_stage(tmp_path / "student/base")
    assert made.config.distilled == C.DistilledConfig(2, 2, guidance_scale=3.0)
    assert made.config.optim.teacher == f"{tmp_path}/teacher/base@2"
    text = TextCond(jnp.zeros((1, 12, 32)), jnp.ones((1, 12), bool))
    assert sample_stage(made, text, image_keys(0, 1)).shape == (1, 8, 8, 3)
    with pytest.raises(ValueError, match="^steps must be 2 for stage base, which is distilled to 2 unguided steps"):
        sample_stage(made, text, image_keys(0, 1), sampling=C.override(made.config.sampling, {"steps": 4}))
