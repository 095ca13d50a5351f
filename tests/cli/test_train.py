"""The command train: what stops it before its directory is made."""


import dataclasses

import pytest

from imagen_jax.cli import recogniser
from imagen_jax.cli.train import warn_of_other_stages
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


def test_a_stage_that_does_not_follow_those_in_the_workdir_is_told(tiny_configs, tmp_path, caplog):
    base, enlarging = tiny_configs
    (tmp_path / "base").mkdir()
    directory.write_config(tmp_path / "base", base)
    text = dataclasses.replace(enlarging.text, width=None)  # as --text.encoder alone leaves it
    for config in (base, enlarging, dataclasses.replace(enlarging, text=text)):
        warn_of_other_stages(tmp_path, config)
    warn_of_other_stages(tmp_path / "none", enlarging)
    assert not caplog.records
    warn_of_other_stages(tmp_path, dataclasses.replace(enlarging, low_res_size=4))
    assert "low_res_size of stage sr16 must be 8, the image_size of the stage base before it; got 4" in caplog.text


def test_a_recogniser_is_not_replaced(tmp_path):
    (tmp_path / "recogniser.json").write_text("{}")
    with pytest.raises(ValueError, match="--output must have no recogniser yet; got .*: name another"):
        recogniser.main(recogniser.Options(data=tmp_path, output=tmp_path))
