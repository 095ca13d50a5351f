"""The files that a run writes: rows and pictures of its own steps alone, whatever the disk does."""

import dataclasses
import json
import sys
import types

import pytest

from imagen_jax.config import RunConfig
from imagen_jax.training import writer as writers


def settings(config, **run):
    return dataclasses.replace(config, run=dataclasses.replace(RunConfig(), **run))


# --- writer ---------------------------------------------------------------------------------------


def test_metrics_and_pictures_are_written_and_those_of_lost_steps_dropped(tiny_configs, tmp_path):
    from PIL import Image

    for first, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with writers.Writer(tmp_path, tiny_configs[0], first) as writer:
            for step in steps:
                writer.write(step, {"loss": 1.0 / step, "loss_logsnr/-2..2": 0.5, "grad_norm": float("nan")})
            writer.picture(steps[-1], "samples", Image.new("RGB", (8, 8), "red"))
        with (tmp_path / writers.METRICS_FILE).open("a") as file:
            file.write('{"step": 9, "lo')  # a process that was killed while it wrote
    rows = [json.loads(line) for line in (tmp_path / writers.METRICS_FILE).read_text().splitlines()[:4]]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[2]["loss"] == pytest.approx(1 / 3)
    assert not any("grad_norm" in row for row in rows)
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == [
        "samples-00000003.png", "samples-00000004.png",
    ]  # fmt: skip
    assert len(list(tmp_path.glob("events.*"))) == 2


def test_a_disk_that_cannot_be_written_does_not_end_training(tiny_configs, tmp_path, capsys, monkeypatch):
    with writers.Writer(tmp_path, tiny_configs[0], 0) as writer:
        writer._file.close()
        writer._file = open("/dev/full", "w", buffering=1)
        for step in (1, 2):
            writer.write(step, {"loss": 1.0})
        monkeypatch.setattr(writer._board, "scalars", lambda *_: 1 / 0)
        for step in (3, 4):
            writer.write(step, {"loss": 1.0})
    printed = "".join(capsys.readouterr())
    assert printed.count("Some metrics cannot be written") == 2  # once for each place
    assert f"to {writers.METRICS_FILE} (" in printed and "to TensorBoard's files (division by zero)" in printed


def test_wandb_gets_everything_if_it_is_installed(tiny_configs, tmp_path, monkeypatch):
    from PIL import Image

    with pytest.raises(ValueError, match="run.wandb must be empty where wandb is not installed"):
        monkeypatch.setattr(writers.importlib.util, "find_spec", lambda name: None)
        writers.check_wandb("project")
    calls = []
    run = types.SimpleNamespace(
        log=lambda values: calls.append((values["step"], sorted(values))),
        finish=lambda: calls.append("finished"),
        define_metric=lambda name, step_metric: calls.append((name, step_metric)),
    )
    fake = types.SimpleNamespace(
        init=lambda **options: calls.append(options) or run, Image=lambda picture: picture
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    config = settings(tiny_configs[0], wandb="project")
    with writers.Writer(tmp_path / "run", config, 0) as writer:
        pass
    (tmp_path / "run").mkdir()
    calls.clear()
    with writers.Writer(tmp_path / "run", config, 0) as writer:
        writer.write(1, {"loss": 1.0})
        writer.picture(1, "samples", Image.new("RGB", (8, 8)))
    assert calls[0]["project"] == "project" and calls[0]["resume"] == "allow"
    assert calls[1:] == [("*", "step"), (1, ["loss", "step"]), (1, ["samples", "step"]), "finished"]
    first = calls[0]["id"]
    with writers.Writer(tmp_path / "run", config, 0):
        assert calls[5]["id"] == first  # the same run goes on

    def refuse(**options):
        raise RuntimeError("not logged in")

    fake.init = refuse
    with writers.Writer(tmp_path / "run", config, 1) as writer:
        writer.write(2, {"loss": 1.0})  # training goes on, and the metrics lie on the disk
    assert json.loads((tmp_path / "run" / writers.METRICS_FILE).read_text().splitlines()[-1])["step"] == 2
