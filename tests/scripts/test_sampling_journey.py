"""sample.py, sweep.py and evaluate.py as a person runs them, on a cascade of random parameters."""

import dataclasses
import json
import runpy
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax import TextEncoder, load_cascade, stage
from imagen_jax import config as C
from imagen_jax.data import shapes, sources, transforms
from imagen_jax.structs import TrainState
from imagen_jax.training import checkpoint
from tests.conftest import random_array

ROOT = Path(__file__).parents[2]
TINY_BERT = ROOT / "tests/goldens/tiny_bert"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny_configs):
    """A cascade 8x8 -> 16x16 on disk."""
    directory = tmp_path_factory.mktemp("journey") / "run"
    text = C.TextConfig(encoder=str(TINY_BERT), width=TextEncoder.from_pretrained(TINY_BERT).width, length=8)
    for config in tiny_configs:
        config = dataclasses.replace(config, text=text)
        shapes_ = jax.eval_shape(lambda config=config: stage.init(config, jax.random.key(0)))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda leaf: random_array(rng, leaf.shape), shapes_)  # noqa: B023
        checkpoint.claim(directory / config.name, config)
        with checkpoint.Checkpoints(directory / config.name, config) as saved:
            saved.save(
                TrainState(jax.numpy.int32(1), params, params, {"none": jax.numpy.zeros(1)}), {"at": 1}
            )
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    directory = tmp_path_factory.mktemp("journey") / "data"
    records = [
        {
            "image": transforms.encode_png(e["image"]),
            "caption": e["caption"],
            "claims": json.dumps(e["claims"]),
        }
        for e in shapes.examples("test", "single", 6)
    ]
    sources.write({"test": records}, directory, name="data", description="Six shapes.")
    return directory


@pytest.fixture
def run(monkeypatch, capsys):
    """run(script, *arguments) -> (exit status, stdout, stderr)"""

    def call(script, *arguments):
        path = str(ROOT / "scripts" / script)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(path, run_name="__main__")
        out = capsys.readouterr()
        return stop.value.code or 0, out.out, out.err

    return call


@pytest.fixture
def photo(tmp_path):
    rng = np.random.default_rng(0)
    file = tmp_path / "photo.png"
    Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).resize((60, 40)).save(file)
    return file


def test_sample_takes_every_option_and_records_what_was_used(workdir, run, tmp_path):
    arguments = ["--workdir", workdir, "--prompts", "a red circle", "a star", "--output", tmp_path / "out"]
    code, out, _ = run(
        "sample.py", *arguments, "--sampler", "unipc", "ddpm", "--steps", 3, "--order", 1, "None", "--aug-level", 0.2,
        "--negative", "a blue square", "--num", 2,
    )  # fmt: skip
    assert code == 0 and "Wrote 4 pictures of 16x16" in out
    picture = Image.open(tmp_path / "out" / "a-star-seed1.png")
    used = json.loads(picture.info["sampling"])
    assert used["base"]["sampler"] == "unipc" and used["base"]["order"] == 1 and used["base"]["steps"] == 3
    assert used["sr16"]["sampler"] == "ddpm" and used["sr16"]["aug_level"] == 0.2


def test_sample_takes_pictures_masks_and_parts_of_a_cascade(workdir, run, tmp_path, photo):
    arguments = ["--workdir", workdir, "--prompts", "a star", "--output", tmp_path / "out", "--steps", 2]
    mask = tmp_path / "mask.png"
    Image.fromarray(np.pad(np.full((40, 30, 3), 255, np.uint8), ((0, 0), (0, 30), (0, 0)))).save(mask)
    expected = transforms.fit(transforms.decode(photo.read_bytes()), (16, 16))

    assert run("sample.py", *arguments, "--image", photo, "--mask", mask)[0] == 0
    painted = np.asarray(Image.open(tmp_path / "out" / "a-star-seed0.png"), int)
    np.testing.assert_allclose(painted[:, 8:], transforms.from_unit(expected)[:, 8:], atol=1)
    assert np.abs(painted[:, :7] - transforms.from_unit(expected)[:, :7]).mean() > 5

    assert run("sample.py", *arguments, "--image", photo, "--outpaint", 25, 25, 0, 0)[0] == 0
    extended = np.asarray(Image.open(tmp_path / "out" / "a-star-seed0-2.png"), int)
    inner = transforms.from_unit(transforms.fit(transforms.decode(photo.read_bytes()), (8, 16)))
    np.testing.assert_allclose(extended[4:12], inner, atol=1)

    assert run("sample.py", *arguments, "--image", photo, "--strength", 0.5)[0] == 0
    assert run("sample.py", *arguments, "--start", "sr16", "--low-res", photo)[0] == 0
    assert run("sample.py", *arguments, "--stop", "base")[0] == 0
    code, out, _ = run("sample.py", *arguments, "--size", 16, 32)
    assert code == 0 and "of 32x16" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--low-res", "{photo}"], "--low-res needs --start with a super-resolution stage; base is none"),
        (["--start", "sr16"], "low_res must be given to the super-resolution stage sr16"),
        (["--start", "sr32"], "start must be a stage, one of base, sr16"),
        (["--mask", "{photo}"], "--mask and --outpaint need --image"),
        (["--image", "{photo}"], "strength must be below 1 for an image without a mask"),
        (["--image", "{photo}", "--mask", "{small}"], "small.png must have the size of --image, 60x40 pixels; got 6x4"),
        (["--image", "{photo}", "--outpaint", "60", "60", "0", "0"], "--outpaint must leave room"),
        (["--size", "18", "16"], "size must be (H, W) in multiples of 4"),
        (["--eta", "0.5", "--sampler", "unipc"], "eta must be left out, since sampler 'unipc' does not use it"),
        (["--best"], "sampling.json must exist"),
    ],
)  # fmt: skip
def test_wrong_pictures_are_one_line(workdir, run, tmp_path, photo, arguments, message):
    small = tmp_path / "small.png"
    Image.new("RGB", (6, 4)).save(small)
    given = [a.replace("{photo}", str(photo)).replace("{small}", str(small)) for a in arguments]
    code, _, err = run(
        "sample.py", "--workdir", workdir, "--prompts", "a", "--output", tmp_path / "out", *given
    )
    assert code == 2 and message in err and err.count("\n") <= 2
    assert not (tmp_path / "out").exists()


def test_sweep_writes_table_front_pictures_and_the_best_preset(workdir, data, run, tmp_path):
    output = tmp_path / "sweep"
    code, out, err = run(
        "sweep.py", "--workdir", workdir, "--data", data, "--num", 5, "--batch-size", 8, "--aug-level", 0.0, 0.3,
        "--guidance-scale", 1.0, 2.0, "--steps", 2, "--output", output,
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads((output / "sweep.json").read_text())
    assert [(row["guidance_scale"], row["aug_level"]) for row in rows] == [(1, 0), (1, 0.3), (2, 0), (2, 0.3)]
    assert [row["cost"] for row in rows] == [4, 4, 8, 8] and any(row["front"] == "*" for row in rows)
    assert all(0 <= row["alignment"] <= 1 and np.isfinite(row["frechet"]) for row in rows)
    assert len(list((output / "best").glob("*.png"))) == 5
    for name in ("pareto.png", "best.png"):
        assert Image.open(output / name).size[0] > 100
    assert "| guidance_scale | aug_level |" in (output / "sweep.md").read_text().replace("| steps ", "")

    best = max(rows, key=lambda row: (round(row["alignment"], 6), -row["cost"]))
    stages = load_cascade(workdir, best=True)
    assert [s.config.sampling.guidance_scale for s in stages] == [best["guidance_scale"]] * 2
    assert stages[1].config.sampling.aug_level == best["aug_level"]
    assert load_cascade(workdir)[0].config.sampling.guidance_scale == 3  # only when asked for
    assert (
        run("sample.py", "--workdir", workdir, "--best", "--prompts", "a", "--output", tmp_path / "out")[0]
        == 0
    )
    (workdir / "sampling.json").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "2"], "Give either --data or --prompts-file"),
        (["--data", "{data}"], "Give at least one sampling option"),
        (["--data", "{data}", "--steps", "2", "0"], "steps must be at least 1; got 0"),
        (["--data", "{data}", "--steps", "2", "--score", "clip"], "--score clip needs --clip"),
        (["--data", "{data}", "--steps", "2", "--stage", "sr32"], "start must be a stage, one of base, sr16"),
        (["--data", "{data}", "--eta", "0.5", "--sampler", "heun"], "eta must be left out"),
    ],
)
def test_a_sweep_that_cannot_be(workdir, data, run, tmp_path, arguments, message):
    given = [argument.replace("{data}", str(data)) for argument in arguments]
    code, _, err = run("sweep.py", "--workdir", workdir, "--output", tmp_path / "sweep", *given)
    assert code == 2 and message in err
    assert not (tmp_path / "sweep").exists()
