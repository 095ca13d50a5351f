"""A cascade that is stored as the difference to another one is read with that one, and with no other."""

import json
import shutil

import jax
import numpy as np
import pytest

from imagen_jax import load_cascade, save_pretrained
from imagen_jax.cli import export
from imagen_jax.stage_dir import exported, exported_params, parameters, pretrained


@pytest.fixture(scope="module")
def tuned(tiny_stages):
    """The stages after a training in which only kernels of the base moved."""
    rng = np.random.default_rng(0)
    move = lambda leaf: leaf + 0.02 * rng.normal(size=leaf.shape).astype("f4") if leaf.ndim > 1 else leaf
    base, *others = tiny_stages
    return (base.replace(params=jax.tree.map(move, base.params)), *others)


@pytest.fixture
def known(tiny_stages, tuned, tmp_path, monkeypatch):
    """A directory of the pretrained cascades "tiny" and "tuned", which is the difference to it."""
    monkeypatch.setenv(pretrained.VARIABLE, str(tmp_path))
    save_pretrained(tiny_stages, tmp_path / "tiny", dtype="int8")
    save_pretrained(tuned, tmp_path / "tuned", dtype="int4", difference_to="tiny")
    return tmp_path


def test_a_difference_is_read_with_the_cascade_that_it_is_to(known, tuned):
    base, sr = load_cascade("tuned")
    assert [base.config, sr.config] == [each.config for each in tuned]
    before = load_cascade("tiny")
    for moved, exact, old in zip(*(jax.tree.leaves(each.params) for each in (base, tuned[0], before[0])), strict=True):
        difference = exact - old
        assert np.square(moved - exact).sum() <= 0.03 * np.square(difference).sum()
    # The file of the other stage holds the rounding of int8 alone, by which the known cascade differs from it.
    for moved, exact in zip(*(jax.tree.leaves(each.params) for each in (sr, tuned[1])), strict=True):
        np.testing.assert_allclose(moved, exact, atol=1e-3 * float(abs(exact).max()) + 1e-12)
    assert "int4, differences to the cascade `tiny`" in (known / "tuned/README.md").read_text()
    found = exported.read(known / "tuned")
    assert found.difference_to.weights["base"] == exported.read(known / "tiny").weights["base"].sha256


def test_what_did_not_move_takes_no_place(known):
    same = load_cascade("tiny")
    save_pretrained(same, known / "same", dtype="int4", difference_to="tiny")
    sizes = {name: file.stat().st_size for name in ("tiny", "same") for file in [known / name / "base.safetensors"]}
    assert sizes["same"] < 100 < sizes["tiny"]
    for one, other in zip(load_cascade("same"), same, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


def test_training_begins_from_a_difference(known):
    found, params = parameters.find("tuned", "base"), load_cascade("tuned")[0].params
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), params)
    jax.tree.map(np.testing.assert_array_equal, found.load(found.checkpoints[0], shapes), params)


def test_another_cascade_of_that_name_is_refused(known, tiny_stages):
    shutil.rmtree(known / "tiny")
    with pytest.raises(ValueError, match="^difference_to of .*tuned must be a pretrained cascade that is installed"):
        load_cascade("tuned")
    save_pretrained(tiny_stages, known / "tiny", dtype="float32")
    with pytest.raises(ValueError, match="^weights of stage base must have the recorded sha256 [0-9a-f]{64}; got"):
        load_cascade("tuned")
    save_pretrained(tiny_stages[:1], known / "first", dtype="int8")
    shutil.rmtree(known / "tiny")
    (known / "first").rename(known / "tiny")
    with pytest.raises(ValueError, match="^difference_to of .*tuned must have a stage sr16; got base"):
        exported_params.read(known / "tuned", exported.read(known / "tuned"), "sr16")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int4"}, "difference_to must be given with dtype int4, .*; got None: name the cascade"),
        ({"difference_to": "tiny"}, "difference_to must be given with dtype int4, .*; got 'tiny': choose int4"),
        ({"dtype": "int4", "difference_to": "none"}, "difference_to must be the name of a pretrained cascade or hf://"),
        ({"dtype": "int4", "difference_to": "tuned"}, "difference_to must be a cascade that is no difference itself"),
        ({"dtype": "int4", "difference_to": "small"}, "difference_to must have a stage sr16; got base"),
        ({"dtype": "int4", "difference_to": "wide"}, "difference_to must have the network of stage base; got another"),
    ],
)
def test_what_cannot_be_a_difference_is_one_line(known, tiny_stages, tuned, options, message, tmp_path):
    save_pretrained(tiny_stages[:1], known / "small")
    shutil.copytree(known / "tiny", known / "wide")
    description = json.loads((known / "wide/config.json").read_text())
    description["stages"][0]["network"]["embedding"] *= 2
    (known / "wide/config.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match=f"^{message}"):
        save_pretrained(tuned, tmp_path / "new", **options)
    assert not (tmp_path / "new").exists()


def test_the_command_says_it_before_anything_is_read(tmp_path):
    for given in (["--dtype", "int4"], ["--difference-to", "shapes"]):
        with pytest.raises(ValueError, match="^--difference-to must be given with dtype int4"):
            export.main(export.parse(["--workdir", str(tmp_path / "none"), "--output", str(tmp_path / "new"), *given]))
