"""Pretrained cascades are found by name, in the package and in further directories."""

import os
import re

import pytest

from imagen_jax import load_cascade, save_pretrained
from imagen_jax.stage_dir import exported, model_card, pretrained
from imagen_jax.stage_dir.model_card import Card


@pytest.fixture(scope="module")
def folder(tiny_stages, tmp_path_factory):
    """A directory of two pretrained cascades, of one stage each."""
    folder = tmp_path_factory.mktemp("pretrained")
    card = Card(summary="Draws shapes.", captions="Captions such as\n\"a star\".")
    for name in ("tiny", "small"):
        save_pretrained(tiny_stages[:1], folder / name, card=card)
    return folder


@pytest.fixture
def known(folder, monkeypatch):
    monkeypatch.setenv(pretrained.VARIABLE, str(folder))
    return folder


def test_a_name_is_a_cascade(known, tiny_stages):
    assert pretrained.directories()["tiny"] == known / "tiny" and pretrained.is_name("tiny")
    (stage,) = load_cascade("tiny")
    assert stage.config == tiny_stages[0].config
    assert "  tiny         Draws shapes. Captions such as \"a star\"." in pretrained.describe().splitlines()


def test_the_installed_cascades_are_whole(monkeypatch):
    monkeypatch.delenv(pretrained.VARIABLE, raising=False)
    installed = pretrained.directories()
    assert "shapes" in installed
    for name, directory in installed.items():
        exported.verify(directory, exported.read(directory))
        told = (directory / "README.md").read_text()
        assert f"# {name}" in told and "Not stated." not in told
        card = exported.read(directory).card
        assert card == model_card.read(directory.with_suffix(".toml"), "--card")  # what it was exported with
        assert all(text in told for text in (card.time, card.metrics, card.pictures_seen, card.intended_use))
    size = sum(file.stat().st_size for directory in installed.values() for file in directory.iterdir())
    assert size < 20e6


def test_further_directories_come_before_the_package(known, monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained, "INSTALLED", known)
    monkeypatch.delenv(pretrained.VARIABLE)
    assert pretrained.directories() == {"small": known / "small", "tiny": known / "tiny"}
    for place in ("first", "second"):
        (tmp_path / place / "tiny").mkdir(parents=True)
        (tmp_path / place / "tiny" / "config.json").write_text("{}")
    places = [tmp_path / "none", tmp_path / "first", "", tmp_path / "second"]
    monkeypatch.setenv(pretrained.VARIABLE, os.pathsep.join(map(str, places)))
    assert pretrained.directories() == {"small": known / "small", "tiny": tmp_path / "first/tiny"}
    assert pretrained.describe().splitlines()[-1] == "  tiny"  # damaged, but listed


def test_a_path_is_not_a_name(known, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert pretrained.resolve("tiny") == known / "tiny"
    for place in ("./tiny", tmp_path / "tiny", os.path.join("..", tmp_path.name, "tiny")):
        assert not pretrained.is_name(place)
        with pytest.raises(ValueError, match="^workdir must hold trained stages, but has none; got .*tiny: train one"):
            load_cascade(place)


def test_an_unknown_name_lists_the_known(known, monkeypatch):
    monkeypatch.setattr(pretrained, "INSTALLED", known)
    with pytest.raises(ValueError, match="^workdir must hold .*; got tony: .*, or name one .* cascades .*small, tiny"):
        load_cascade("tony")
    rule = "be one of small, tiny, the directory of a cascade or hf://OWNER/NAME; got 'tony' (did you mean tiny?)."
    with pytest.raises(ValueError, match=re.escape(f"--pretrained must {rule}")):
        pretrained.check("tony", "--pretrained")
    for place in ("tiny", str(known / "small")):
        pretrained.check(place, "--pretrained")
