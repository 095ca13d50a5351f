"""The command train: what stops it before its directory is made."""


import pytest

from imagen_jax.cli import recogniser
from imagen_jax.data import transforms
from imagen_jax.prepare.records import write_records
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
