"""The command train: what stops it before its directory is made."""

import dataclasses

import pytest

from imagen_jax.cli import recogniser, train
from imagen_jax.config.presets import load_preset
from imagen_jax.data import transforms
from imagen_jax.prepare.records import write_records
from imagen_jax.stage_dir import directory
from tests.cli.conftest import TRAIN, status_and_error
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text.encoder", "{tmp}/encoder"], "encoder"),
        (["--text.encoder", "{tiny}", "--text.width", "99"], "text.width must be 32"),
    ],
)
def test_a_wrong_encoder_stops_before_the_workdir_is_made(monkeypatch, capsys, tmp_path, options, message):
    import numpy as np

    record = {"image": transforms.encode_png(np.zeros((64, 64, 3), np.uint8)), "caption": "black"}
    write_records(
        {"train": [record] * 8}, tmp_path / "data", name="data", description="Eight black pictures."
    )
    (tmp_path / "encoder").mkdir()
    options = [option.replace("{tiny}", str(ROOT / "tests/goldens/tiny_bert")) for option in options]
    code, err = status_and_error(monkeypatch, capsys, [*TRAIN, "--data.path", "{tmp}/data", *options], tmp_path)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "run").exists()


def test_a_recogniser_is_not_replaced(tmp_path):
    (tmp_path / "recogniser.json").write_text("{}")
    with pytest.raises(ValueError, match="--output must have no recogniser yet; got .*: name another"):
        recogniser.main(recogniser.Options(data=tmp_path, output=tmp_path))


def test_a_stage_that_will_not_fit_the_others_is_told(tmp_path):
    base, *_ = load_preset("quickstart")
    options = train.Options(preset="quickstart", stage="base", workdir=tmp_path)
    other_text = dataclasses.replace(base, text=dataclasses.replace(base.text, length=9, width=None))
    assert train.misfit(options, base) == train.misfit(options, other_text) == ""
    larger = dataclasses.replace(base, image_size=2 * base.image_size)
    assert f"must be {larger.image_size}, the image_size of the stage base" in train.misfit(options, larger)
    directory.write_config(tmp_path / "base", base)
    following = dataclasses.replace(options, stage="sr64")
    assert train.misfit(following, dataclasses.replace(load_preset("quickstart")[1], text=base.text)) == ""
    assert "text.length" in train.misfit(
        following, dataclasses.replace(load_preset("quickstart")[1], text=other_text.text)
    )
