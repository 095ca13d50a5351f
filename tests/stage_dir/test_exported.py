"""An exported cascade is the cascade: the same stages and pictures; what is damaged is one line that names the file."""

import json
import os

import jax
import numpy as np
import pytest

from imagen_jax import load_cascade, sample_cascade, save_cascade, save_pretrained
from imagen_jax.stage_dir import exported, loading
from imagen_jax.stage_dir.model_card import Card


@pytest.fixture(scope="module")
def directory(tiny_stages, tmp_path_factory):
    """An export in float32."""
    place = tmp_path_factory.mktemp("exports") / "tiny"
    card = Card(title="Tiny", prompts=("a star",))
    save_pretrained(tiny_stages, place, dtype="float32", card=card, steps={"base": 7}, notice="By A.", licence="MIT")
    return place


@pytest.fixture
def copy(directory, tmp_path):
    """A copy to damage."""
    (tmp_path / "tiny").mkdir()
    for file in directory.iterdir():
        (tmp_path / "tiny" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "tiny"


def test_the_layout(directory):
    names = ["LICENSE", "NOTICE", "README.md", "base.safetensors", "config.json", "sr16.safetensors"]
    assert sorted(os.listdir(directory)) == names and (directory / "NOTICE").read_text() == "By A."
    found = exported.read(directory)
    assert found.card == Card(title="Tiny", prompts=("a star",)) and found.dtype == "float32"
    assert found.weights["base"].step == 7 and found.weights["sr16"].step is None
    assert found.weights["base"].size == (directory / "base.safetensors").stat().st_size


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo, lambda file: os.symlink("nowhere", file)])
def test_a_weight_file_is_a_file(copy, make):
    (copy / "base.safetensors").unlink()
    make(copy / "base.safetensors")
    with pytest.raises(ValueError, match="base.safetensors must be a regular file; got a link to nothing, or what"):
        load_cascade(copy)


def test_what_is_neither_a_cascade_nor_a_stage_says_so(copy):
    for content in ("{}", "[]", "null"):
        (copy / "config.json").write_text(content)
        with pytest.raises(ValueError, match="tiny/config.json must hold a stage's configuration"):
            load_cascade(copy)


@pytest.mark.slow
def test_an_export_loads_as_the_stages_of_training_do(directory, tiny_stages, tmp_path):
    save_cascade(tiny_stages, tmp_path / "run")
    for place in (directory, str(directory)):
        for one, other in zip(load_cascade(tmp_path / "run"), load_cascade(place), strict=True):
            assert one.config == other.config
            assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
            for a, b in zip(jax.tree.leaves(one.params), jax.tree.leaves(other.params), strict=True):
                assert a.tobytes() == b.tobytes() and (a.dtype, a.sharding) == (b.dtype, b.sharding)
    assert [each.params for each in loading.read_cascade(directory)] == [None, None]


@pytest.mark.slow
def test_float32_draws_the_same_pictures_and_int8_nearly(directory, tiny_stages, make_request, tmp_path):
    request = make_request(2)
    base = np.asarray(sample_cascade(tiny_stages[:1], *request))
    np.testing.assert_array_equal(base, sample_cascade(load_cascade(directory)[:1], *request))
    sizes = {}
    for dtype in ("bfloat16", "int8"):
        save_pretrained(tiny_stages, tmp_path / dtype, dtype=dtype)
        loaded = load_cascade(tmp_path / dtype)
        difference = np.abs(base - sample_cascade(loaded[:1], *request))
        assert 0 < difference.mean() < 0.05
        sizes[dtype] = (tmp_path / dtype / "base.safetensors").stat().st_size
    assert sizes["int8"] < sizes["bfloat16"] < 0.6 * (directory / "base.safetensors").stat().st_size


def test_checkpoints_are_the_hashes_of_weight_files(directory, tiny_stages, tmp_path):
    _, hashes = load_cascade(directory, return_steps=True)
    assert hashes == {name: weights.sha256 for name, weights in exported.read(directory).weights.items()}
    load_cascade(directory, steps=hashes)
    with pytest.raises(ValueError, match="^weights of stage base must have the recorded sha256 0000.*; got [0-9a-f]+"):
        load_cascade(directory, steps={"base": "0" * 64})
    with pytest.raises(ValueError, match="^checkpoint of stage base must be of step 3; got the exported cascade"):
        load_cascade(directory, steps={"base": 3})
    save_cascade(tiny_stages, tmp_path / "run")
    with pytest.raises(ValueError, match="^checkpoint must be the weight file of sha256 .*; got the trained stage"):
        load_cascade(tmp_path / "run", steps=hashes)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def edit(change):
    def edited(place):
        data = json.loads((place / "config.json").read_text())
        change(data)
        (place / "config.json").write_text(json.dumps(data))

    return edited


def differs(description):
    return edit(lambda data: data.update(version=2, dtype="int4", difference_to=description))


DAMAGE = {
    "a bit": (lambda place: flip(place / "sr16.safetensors"), "sr16.safetensors must have sha256 .*; got .*: the file"),
    "the end": (lambda place: os.truncate(place / "base.safetensors", 99), "base.safetensors must have .* bytes; got"),
    "no file": (lambda place: os.unlink(place / "base.safetensors"), "base.safetensors must be there; got no such"),
    "not JSON": (lambda place: (place / "config.json").write_text("{"), "config.json must hold JSON"),
    "a newer version": (edit(lambda data: data.update(version=99)), "version must be at most 2; got 99: update"),
    "no version": (edit(lambda data: data.pop("version")), "version must be a whole number"),
    "another format": (edit(lambda data: data.update(format="other")), "format must be imagen_jax cascade"),
    "a further key": (edit(lambda data: data.update(more=1)), "must have the keys format, version"),
    "no stages": (edit(lambda data: data.update(stages=[])), "stages must be a list of configurations"),
    "one stage": (edit(lambda data: data["stages"].pop()), "weights must be a JSON object of the stages base"),
    "a wrong stage": (edit(lambda data: data["stages"][0].update(seed=-1)), "seed must be at least 0; got -1"),
    "another order": (edit(lambda data: data["stages"].reverse()), "low_res_size of stage"),
    "weights": (edit(lambda data: data["weights"].update(base=3)), "weights.base must have the keys sha256, size"),
    "a size": (edit(lambda data: data["weights"]["base"].update(size="x")), "weights.base.size must be a whole number"),
    "a type": (edit(lambda data: data.update(dtype="f4")), "dtype must be one of bfloat16, float32, .*; got 'f4'"),
    "no other cascade": (edit(lambda data: data.update(dtype="int4")), "dtype must be int4 with difference_to alone"),
    "version 2": (edit(lambda data: data.update(version=2)), "must have the keys format, .*, difference_to; got"),
    "another cascade": (differs({"cascade": "a"}), "difference_to must have the keys cascade, weights; got"),
    "other hashes": (
        differs({"cascade": "a", "weights": {"base": "1"}}),
        "difference_to.weights must be a JSON object of the SHA-256 of base, sr16",
    ),
    "the card": (edit(lambda data: data["card"].update(by="A")), "card must have fields among title, .*; got 'by'"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_one_line_that_names_the_file(copy, damage, message):
    damage(copy)
    with pytest.raises(ValueError, match=f"^{copy}.*{message}") as error:
        load_cascade(copy)
    assert "\n" not in str(error.value)


def test_weights_of_another_network_are_refused(copy, tiny_stages, tmp_path):
    """A consistent file of the other stage's parameters."""
    (copy / "base.safetensors").write_bytes((copy / "sr16.safetensors").read_bytes())
    edit(lambda data: data["weights"].update(base=data["weights"]["sr16"]))(copy)
    with pytest.raises(ValueError, match="base.safetensors must hold the parameters of the network that"):
        load_cascade(copy)
