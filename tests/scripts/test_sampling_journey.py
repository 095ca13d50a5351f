"""sample.py, sweep.py and evaluate.py as a person runs them, on a cascade of random parameters."""

import dataclasses
import hashlib
import json
import os
import runpy
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from imagen_jax import TextEncoder, load_cascade, save_cascade, stage
from imagen_jax import config as C
from imagen_jax.data import transforms
from imagen_jax.evaluation import METRICS, recogniser
from imagen_jax.evaluation.recogniser import Config, Recogniser
from imagen_jax.models import lora
from imagen_jax.prepare import shapes
from imagen_jax.prepare.records import write_records
from imagen_jax.stage_dir import checkpoint
from imagen_jax.stage_dir import directory as stage_dir
from imagen_jax.structs import TrainState
from tests.conftest import random_array

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("compiled_once")]  # each script compiles anew

ROOT = Path(__file__).parents[2]
HUNDRED = [str(i / 100) for i in range(1, 101)]
MANY = ["--percentile", *HUNDRED, "--ddpm-gamma", *HUNDRED, "--guidance-rescale", *HUNDRED]
TINY_BERT = ROOT / "tests/goldens/tiny_bert"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, tiny_configs):
    """A cascade 8x8 -> 16x16 on disk, of networks of one level without attention: the tests compile it often."""
    networks = (
        C.UNetConfig((8,), (1,), (False,), embedding=32),
        C.EfficientUNetConfig(8, (8,), (1,), (False,), (False,), embedding=32),
    )
    directory = tmp_path_factory.mktemp("journey") / "run"
    text = C.TextConfig(encoder=str(TINY_BERT), width=TextEncoder.from_pretrained(TINY_BERT).width, length=8)
    for config, network in zip(tiny_configs, networks, strict=True):
        config = dataclasses.replace(config, text=text, network=network)
        shapes_ = jax.eval_shape(lambda config=config: stage.init(config, jax.random.key(0)))
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda leaf: random_array(rng, leaf.shape), shapes_)  # noqa: B023
        stage_dir.write_config(directory / config.name, config)
        with checkpoint.Checkpoints(directory / config.name, config) as saved:
            saved.save(
                TrainState(jax.numpy.int32(1), params, params, {"none": jax.numpy.zeros(1)}), {"next_index": 1}
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
    write_records({"test": records}, directory, name="data", description="Six shapes.")
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


def test_sample_takes_every_option_records_what_was_used_and_makes_it_again(workdir, run, tmp_path):
    (tmp_path / "prompts.txt").write_text("# shapes\n\\#1 red circle\na star\n")
    output = tmp_path / "out"
    code, out, err = run(
        "sample.py", "--workdir", workdir, "--prompts-file", tmp_path / "prompts.txt", "--output", output, "--sampler",
        "unipc", "ddpm", "--steps", 3, "--order", 1, "None", "--aug-level", 0.2, "--negative", "a blue square", "--num",
        5, "--seed", 3, "--batch-size", 8, "--text-dtype", "int8",
    )  # fmt: skip
    assert code == 0 and "Wrote 10 pictures of 16x16" in out and "2 prompts; 1 comment skipped" in out, err
    picture = Image.open(output / "a-star-seed4.png")
    used, rest = (json.loads(picture.info[key]) for key in ("sampling", "imagen_jax"))
    assert used["base"]["sampler"] == "unipc" and used["base"]["order"] == 1 and used["base"]["steps"] == 3
    assert used["sr16"]["sampler"] == "ddpm" and used["sr16"]["aug_level"] == 0.2
    assert (rest["checkpoints"], rest["size"], rest["workdir"]) == (
        {"base": 1, "sr16": 1},
        [16, 16],
        str(workdir),
    )
    assert (rest["negative"], rest["row"], rest["batch_size"]) == ("a blue square", 6, 8)

    for name, flags in (
        ("a-star-seed4.png", ()),
        ("a-star-seed7.png", ("--one-at-a-time",)),
        ("1-red-circle-seed3.png", ()),
    ):  # of the first batch and the second
        code, out, err = run("sample.py", "--from-png", output / name, "--output", tmp_path / "again", *flags)
        assert code == 0 and "equal to the recorded picture to the bit" in out, err
        assert (tmp_path / "again" / name).read_bytes() == (output / name).read_bytes()  # the record, too

    before = sorted(tmp_path.rglob("*"))
    for arguments, message in (
        (["--steps", 3, "--best"], "that the record in the picture has; got --best, --steps: leave"),
        (["--seed", 0], "the record in the picture has; got --seed"),
        (["--prompts", "a"], "the record in the picture has; got --prompts"),
        (["--mask", output / "grid.png"], "--mask must be left out: the picture was made without"),
        (["--workdir", tmp_path], "--workdir must hold trained stages, but has none"),
        (["--workdir", workdir / "base"], f"itself; give the directory of its cascade, {workdir}."),
        (["--output", output / "grid.png"], "--output must be a directory"),
        (["--batch-size", 0], "--batch-size must be at least 1"),
    ):
        code, _, err = run("sample.py", "--from-png", output / "a-star-seed4.png", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err
    code, _, err = run("sample.py", "--from-png", output / "grid.png")
    assert code == 2 and "--from-png" in err and "must hold the record of a picture" in err
    assert sorted(tmp_path.rglob("*")) == before


def test_adapters_are_exported_applied_recorded_and_found_again(workdir, data, run, tmp_path):
    (base, _), lora_config = load_cascade(workdir), C.LoraConfig(rank=2, targets="all")
    config = dataclasses.replace(base.config, lora=lora_config, init_from=f"{workdir}/base@1")
    rng, new = np.random.default_rng(1), jax.eval_shape(lambda: lora.init(jax.random.key(0), base.params, 2, "all"))
    adapters = jax.tree.map(lambda leaf: random_array(rng, leaf.shape), new)
    stage_dir.write_config(tmp_path / "mine/base", config)
    with checkpoint.Checkpoints(tmp_path / "mine/base", config) as saved:
        saved.save_ema_params(3, adapters)
    ink = tmp_path / "ink"
    code, out, err = run("export.py", "--workdir", tmp_path / "mine", "--adapter", "base", "--output", ink)
    assert code == 0 and f"with --adapter {ink}." in out, err
    for arguments, message in (
        (["--workdir", workdir, "--adapter", "base"], "--adapter must be a stage that was trained with --lora.rank"),
        (["--workdir", tmp_path / "mine", "--adapter", "base", "--best"], "--best must be left out with --adapter"),
        (["--workdir", tmp_path / "mine", "--adapter", "sr16"], "sr16 must hold a trained stage"),
    ):
        code, _, err = run("export.py", *arguments, "--output", tmp_path / "no")
        assert code == 2 and message in err and err.count("\n") == 1, err

    arguments = ["--prompts", "a star", "--steps", 2, "--stop", "base", "--output", tmp_path / "out"]
    code, out, err = run("sample.py", "--workdir", workdir, *arguments, "--adapter", f"{ink}:1")
    assert code == 0, err
    assert run("sample.py", "--workdir", tmp_path / "mine", *arguments)[0] == 0  # merged by loading
    assert run("sample.py", "--workdir", workdir, *arguments)[0] == 0
    picture, merged, plain = (
        np.asarray(Image.open(tmp_path / "out" / f"a-star-seed0{end}.png"), int) for end in ("", "-2", "-3")
    )
    np.testing.assert_allclose(picture, merged, atol=1)
    assert np.abs(picture - plain).mean() > 1
    png = tmp_path / "out/a-star-seed0.png"
    (used,) = json.loads(Image.open(png).info["imagen_jax"])["adapters"]
    assert (used["path"], used["weight"]) == (str(ink), 1.0)

    moved = ink.rename(tmp_path / "moved")
    again = ["--from-png", png, "--output", tmp_path / "again"]
    for arguments, message in (
        ([], "--adapter must be the adapter that the picture was made with; "),
        (["--adapter", f"{moved}:0.5"], "--adapter must name adapters of the picture without weights; got"),
        (["--adapter", moved, moved], "--adapter must name each adapter once"),
    ):
        code, _, err = run("sample.py", *again, *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err
    code, out, err = run("sample.py", *again, "--adapter", moved)
    assert code == 0 and "equal to the recorded picture to the bit" in out, err
    for arguments, message in (
        (["--adapter", tmp_path], "--adapter must be an adapter, "),
        (["--adapter", moved, "--start", "sr16"], "must be for one of the stages that run, sr16; got one of"),
        (["--adapter", f"{moved}:nan"], "must be a finite number; got nan"),
    ):
        code, _, err = run("sample.py", "--workdir", workdir, "--prompts", "a", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err

    grids = {}
    common = ["--data", data, "--num", 2, "--batch-size", 8, "--steps", 2, "--aug-level", 0.3, "--guidance-scale", 2.0]
    for name, adapter in (("plain", []), ("without", ["--adapter", f"{moved}:0"]), ("with", ["--adapter", moved])):
        output = ["--output", tmp_path / name]
        code, _, err = run("evaluate.py", "--workdir", workdir, *common, *adapter, *output)
        assert code == 0, err
        grids[name] = np.asarray(Image.open(tmp_path / name / "grid.png"), int)
    np.testing.assert_array_equal(grids["plain"], grids["without"])
    assert (grids["plain"] != grids["with"]).any()
    code, _, err = run("evaluate.py", "--workdir", workdir, *common, "--adapter", tmp_path)
    assert code == 2 and "--adapter must be an adapter, " in err and err.count("\n") == 1, err


def test_a_full_disk_leaves_nothing_and_a_missing_checkpoint_makes_nothing(
    workdir, run, tmp_path, monkeypatch
):
    arguments = ["--prompts", "a", "--output", tmp_path / "out", "--stop", "base", "--steps", 2]
    with monkeypatch.context() as full:
        full.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        code, _, err = run("sample.py", "--workdir", workdir, *arguments)
        told = [line for line in err.splitlines() if "sampling:" not in line]
        assert (
            code == 2
            and len(told) == 1
            and "a-seed0.png cannot be written: No space left on device." in told[0]
        )
    assert list((tmp_path / "out").iterdir()) == []  # and the next run writes the same name
    assert run("sample.py", "--workdir", workdir, *arguments)[0] == 0
    assert sorted(os.listdir(tmp_path / "out")) == ["a-seed0.png", "grid.png"]
    png = tmp_path / "out" / "a-seed0.png"
    shutil.copytree(workdir, tmp_path / "run")
    checkpoints = tmp_path / "run" / "base" / "checkpoints"
    (checkpoints / "1").rename(checkpoints / "2")
    code, _, err = run(
        "sample.py", "--from-png", png, "--workdir", tmp_path / "run", "--output", tmp_path / "out"
    )
    assert code == 2 and "must hold the checkpoint of step 1; got steps [2]" in err
    config = json.loads((tmp_path / "run" / "base" / "config.json").read_text())
    (tmp_path / "run" / "base" / "config.json").write_text(json.dumps(config | {"name": "small"}))
    code, _, err = run(
        "sample.py", "--from-png", png, "--workdir", tmp_path / "run", "--output", tmp_path / "out"
    )
    assert code == 2 and "--workdir must hold the stages base in a row; " in err and "has small, sr16: give" in err
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_sample_takes_pictures_masks_and_parts_of_a_cascade(workdir, run, tmp_path, photo):
    arguments = ["--workdir", workdir, "--prompts", "a star", "--output", tmp_path / "out", "--steps", 2]
    mask = tmp_path / "mask.png"
    Image.fromarray(np.pad(np.full((40, 30, 3), 255, np.uint8), ((0, 0), (0, 30), (0, 0)))).save(mask)
    expected = transforms.fit(transforms.decode(photo.read_bytes()), (16, 16))

    assert run("sample.py", *arguments, "--image", photo, "--mask", mask)[0] == 0
    painted = np.asarray(Image.open(tmp_path / "out" / "a-star-seed0.png"), int)
    np.testing.assert_allclose(painted[:, 8:], transforms.from_unit(expected)[:, 8:], atol=1)
    assert np.abs(painted[:, :7] - transforms.from_unit(expected)[:, :7]).mean() > 5

    moved = photo.rename(tmp_path / "moved.png")
    again = ["--from-png", tmp_path / "out" / "a-star-seed0.png", "--output", tmp_path / "again"]
    code, _, err = run("sample.py", *again)
    assert (
        code == 2
        and f"--image must be the file that the picture was made from; {photo} does not exist" in err
    )
    assert run("sample.py", *again, "--image", mask)[0] == 2
    code, out, err = run("sample.py", *again, "--image", moved)
    assert code == 0 and "equal to the recorded picture to the bit" in out, err
    record = json.loads(Image.open(tmp_path / "again" / "a-star-seed0.png").info["imagen_jax"])
    assert record["image"] == {"path": str(moved), "sha256": hashlib.sha256(moved.read_bytes()).hexdigest()}
    moved.rename(photo)

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
        (["--low-res", "{photo}"], "--low-res must come with --start at a super-resolution stage; got base"),
        (["--start", "sr16"], "--low-res must be given to the super-resolution stage sr16"),
        (["--start", "sr32"], "start must be a stage, one of base, sr16"),
        (["--mask", "{photo}"], "--mask and --outpaint must come with --image"),
        (["--image", "{photo}"], "--strength must be below 1 for an image without a mask"),
        (["--image", "{photo}", "--mask", "{small}"], "small.png must have the size of --image, 60x40 pixels; got 6x4"),
        (["--image", "{photo}", "--outpaint", "60", "60", "0", "0"], "--outpaint must leave room"),
        (["--image", "{photo}", "--outpaint", "-1", "0", "0", "5"], "--outpaint must be at least 0"),
        (["--image", "{photo}", "--outpaint", "5", "0", f"{10**400}", "5"], "--outpaint must be at most 99"),
        (["--image", "{photo}", "--outpaint", "0", "0", "0", "0"], "--outpaint must leave something to paint"),
        (["--image", "{photo}", "--strength", "0.5", "--size", "1000000", "1000000"], "--size must be at most 16384"),
        (["--size", "16", f"{10**400}"], "--size must be at most 16384"),
        (["--size", "16384", "16384", "--num", "100000"], "--output must have room for about"),
        (["--image", "missing.png"], "--image must be a picture file; got missing.png, which does not exist: give"),
        (["--image", "{photo}", "--mask", "missing.png"], "--mask must be a picture file; got missing.png, which"),
        (["--start", "sr16", "--low-res", "m.png"], "--low-res must be a picture file; got m.png, which does not"),
        (["--size", "17", "16"], "--size must be (H, W) in multiples of 2"),
        (["--eta", "0.5", "--sampler", "unipc"], "--eta must be left out, since sampler 'unipc' does not use it"),
        (["--best"], "sampling.json must exist"),
        (["--negative", "\udcff"], "--negative must be text without null characters and surrogates"),
        (["--fsdp", "3"], "--fsdp must be a divisor of the 8 devices; got 3"),
        (["--fsdp", "0"], "--fsdp must be at least 1"),
        (["--fsdp", f"{10**23}"], "--fsdp must be at most"),
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


CARD = """
summary = "Draws nothing."
captions = "Captions such as \\"a star\\"."
prompts = ["a star"]
"""


def test_an_exported_cascade_is_sampled_by_name_and_again(workdir, data, run, tmp_path, monkeypatch):
    (tmp_path / "card.toml").write_text(CARD)
    (tmp_path / "NOTICE").write_text("By A.")
    exported = tmp_path / "names" / "tiny"
    texts = ["--card", tmp_path / "card.toml", "--notice", tmp_path / "NOTICE"]
    code, out, err = run("export.py", "--workdir", workdir, "--output", exported, "--dtype", "float32", *texts)
    assert code == 0 and f"sample.py --pretrained {exported} --prompts" in out, err
    readme = (exported / "README.md").read_text()
    assert (exported / "NOTICE").read_text() == "By A." and '--prompts "a star"' in readme
    assert "| base | 8 |" in readme and "| 1 | 8 |" in readme  # one step of 8 pictures

    monkeypatch.setenv("IMAGEN_JAX_PRETRAINED", str(exported.parent))
    monkeypatch.chdir(tmp_path)
    assert "tiny Draws nothing. Captions such as \"a star\"." in " ".join(run("sample.py", "--help")[1].split())
    arguments = ["--prompts", "a star", "--steps", 2, "--stop", "base"]
    pixels = {}
    for option, place in (("--workdir", workdir), ("--workdir", exported), ("--pretrained", "tiny")):
        code, _, err = run("sample.py", option, place, *arguments, "--output", tmp_path / f"{len(pixels)}")
        assert code == 0, err
        pixels[len(pixels)] = np.asarray(Image.open(tmp_path / f"{len(pixels)}" / "a-star-seed0.png"))
    assert (pixels[0] == pixels[1]).all() and (pixels[0] == pixels[2]).all()
    png = tmp_path / "2/a-star-seed0.png"
    record = json.loads(Image.open(png).info["imagen_jax"])
    sha256 = hashlib.sha256((exported / "base.safetensors").read_bytes()).hexdigest()
    assert record["workdir"] == "tiny" and record["checkpoints"] == {"base": sha256}

    code, out, err = run("sample.py", "--from-png", png)
    assert code == 0 and "equal to the recorded picture to the bit" in out, err
    assert (tmp_path / "samples/a-star-seed0.png").read_bytes() == png.read_bytes()
    moved = exported.rename(tmp_path / "moved")
    code, _, err = run("sample.py", "--from-png", png, "--output", tmp_path / "none")
    assert code == 2 and "--workdir must be the directory of the cascade; tiny does not exist: give" in err
    assert run("sample.py", "--from-png", png, "--pretrained", moved, "--output", tmp_path / "again")[0] == 0
    code, _, err = run("export.py", "--workdir", moved, "--output", exported, "--dtype", "int8")
    assert code == 0, err
    described = [json.loads((place / "config.json").read_text()) for place in (moved, exported)]
    assert described[0]["card"] == described[1]["card"] and (exported / "NOTICE").read_text() == "By A."
    assert [each["weights"]["base"]["step"] for each in described] == [1, 1]
    code, _, err = run("export.py", "--workdir", moved, "--push-to-hub", "a/b", "--dtype", "float32")
    assert code == 2 and "--dtype must be left out without --output, which pushes what is there" in err
    code, _, err = run("sample.py", "--from-png", png, "--output", tmp_path / "none")
    assert code == 2 and f"weights of stage base must have the recorded sha256 {sha256}; got" in err
    common = ["--data", data, "--num", 2, "--batch-size", 8, "--steps", 2, "--aug-level", 0.3, "--guidance-scale", 2.0]
    code, _, err = run("evaluate.py", "--pretrained", "tiny", *common)
    assert code == 0 and (tmp_path / "evaluation/alignment.md").exists(), err
    assert run("sweep.py", "--pretrained", "tiny", *common)[0] == 0 and (tmp_path / "sweep/sampling.json").exists()
    assert not (exported / "sampling.json").exists()


def test_a_saved_stage_is_sampled_by_the_command(workdir, run, tmp_path):
    stages = load_cascade(workdir)
    save_cascade(stages[:1], tmp_path / "saved")
    arguments = ["--prompts", "a star", "--steps", 2]
    for place, more in ((workdir, ["--stop", "base"]), (tmp_path / "saved", [])):
        assert run("sample.py", "--workdir", place, *arguments, *more, "--output", tmp_path / place.name)[0] == 0
    one, other = (np.asarray(Image.open(tmp_path / name / "a-star-seed0.png")) for name in (workdir.name, "saved"))
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("sample.py --pretrained tony --prompts a", "the directory of a cascade or hf://OWNER/NAME; got"),
        ("sample.py --pretrained hf://a --prompts a", "--pretrained must be hf://OWNER/NAME or hf://OWNER/NAME@REVISION;"),
        ("sample.py --pretrained RUN --workdir RUN --prompts a", "--pretrained must be left out with --workdir; got"),
        ("sample.py --pretrained RUN --best --prompts a", "--best must be left out with --pretrained; got"),
        ("export.py --workdir RUN", "--output must be given; got no value"),
        ("export.py --workdir RUN --output RUN", "--output must be a new directory; got"),
        ("export.py --workdir RUN/none --output TMP/x", "--workdir must hold trained stages, but has none"),
        ("export.py --workdir RUN --output TMP/x --best", "sampling.json must exist"),
        ("export.py --workdir RUN --output TMP/x --dtype f4", "--dtype must be one of bfloat16, float32, int8, int4; "),
        ("export.py --workdir RUN --output TMP/x --card none", "--card must be a TOML file; got none, which does not"),
        ("export.py --workdir RUN --output TMP/x --notice none", "--notice must be a text file; got none, which does"),
        ("export.py --workdir RUN --output TMP/x --push-to-hub me", "--push-to-hub must be OWNER/NAME, a repository"),
        ("export.py --workdir RUN/none --push-to-hub me/x", "workdir must hold trained stages, but has none"),
        ("export.py --workdir RUN --push-to-hub me/x", "--output must be given; got no value"),
        ("export.py --workdir RUN --output TMP/x --push-to-hub me/x", "--push-to-hub must be used with a token of the"),
    ],
)  # fmt: skip
def test_what_cannot_be_exported_or_named_is_one_line(workdir, run, tmp_path, monkeypatch, line, message):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
    code, _, err = run(*line.replace("RUN", str(workdir)).replace("TMP", str(tmp_path)).split())
    assert code == 2 and message in err and err.count("\n") == 1, err
    assert list(tmp_path.iterdir()) == []


def test_sweep_writes_table_front_pictures_and_the_best_preset(workdir, data, run, tmp_path):
    output = tmp_path / "sweep"
    (output / "best").mkdir(parents=True)
    for name in ("0007-of-an-earlier-sweep.png", "mine.png"):
        (output / "best" / name).write_bytes(b"")
    code, out, err = run(
        "sweep.py", "--workdir", workdir, "--data", data, "--num", 5, "--batch-size", 8, "--aug-level", 0.0, 0.3,
        "--guidance-scale", 1.0, 2.0, "--steps", 2, "--output", output,
    )  # fmt: skip
    assert code == 0, err
    rows = json.loads((output / "sweep.json").read_text())
    assert [(row["guidance_scale"], row["aug_level"]) for row in rows] == [(1, 0), (1, 0.3), (2, 0), (2, 0.3)]
    assert [row["cost"] for row in rows] == [4, 4, 8, 8] and any(row["front"] == "*" for row in rows)
    assert all(0 <= row["alignment"] <= 1 and np.isfinite(row["frechet"]) for row in rows)
    found = [file.name for file in (output / "best").glob("*.png")]
    assert len(found) == 6 and "mine.png" in found and "0007-of-an-earlier-sweep.png" not in found
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


def test_evaluate_writes_a_table_its_numbers_and_a_grid(workdir, data, run, tmp_path):
    options = ["--batch-size", 8, "--aug-level", 0.3, "--guidance-scale", 2.0, "--steps", 2]  # compiled by the sweep
    code, out, err = run(
        "evaluate.py", "--workdir", workdir, "--data", data, "--num", 5, *options, "--output", tmp_path / "out"
    )
    assert code == 0, err
    assert sorted(os.listdir(tmp_path / "out")) == ["alignment.json", "alignment.md", "grid.png"]
    result = json.loads((tmp_path / "out/alignment.json").read_text())
    table = (tmp_path / "out/alignment.md").read_text()
    assert result["all"]["num"] == 5 and 0 <= result["all"]["right"] <= 1, result
    assert "| all |" in table and "Output of sr16 averaged down to 8x8 against base: PSNR " in table and table in out
    assert Image.open(tmp_path / "out/grid.png").size[0] > 100
    (tmp_path / "out/alignment.json").unlink()
    code, _, err = run("evaluate.py", "--workdir", workdir, "--data", data, "--output", tmp_path / "out")
    assert code == 2 and "--output must have no grid.png of another command" in err


def test_icons_are_evaluated_by_a_recogniser(workdir, data, run, tmp_path):
    names = Config(("red", "blue"), ("disc", "stripes"), 16)
    Recogniser(names, recogniser.init(names, jax.random.key(0))).save(tmp_path / "r")
    image = transforms.encode_png(np.full((16, 16, 3), 255, np.uint8))
    claims = [{"subject": name, "name": name, "style": "disc"} for name in ("red", "blue", "green")]
    records = [{"image": image, "caption": each["name"], "claims": json.dumps(each)} for each in claims]
    write_records({"test": records}, tmp_path / "icons", name="icons", description="Icons.")
    common = ["--workdir", workdir, "--batch-size", 8, "--aug-level", 0.3, "--guidance-scale", 2.0, "--steps", 2]
    icons = [*common, "--data", tmp_path / "icons"]
    recognition = ["--metrics", "recognition", "--recogniser", tmp_path / "r", "--output", tmp_path / "out"]
    code, out, err = run("evaluate.py", *icons, *recognition)
    assert code == 0 and "1 of 3 prompts have subjects that the recogniser does not know" in out, err
    result = json.loads((tmp_path / "out/recognition.json").read_text())
    assert {name: row["num"] for name, row in result.items()} == {"subject": 2, "subject in top 5": 2, "style": 3}
    code, out, err = run("sweep.py", *icons, "--recogniser", tmp_path / "r", "--output", tmp_path / "s")
    assert code == 0 and "(recognition " in out, err
    (workdir / "sampling.json").unlink()

    for arguments, message in (
        ([*common, "--data", data, *recognition], f"of icons, which records what captions claim; got {data}."),
        ([*icons, "--metrics", "recognition"], "--metrics recognition must come with --recogniser; got none."),
        ([*icons, "--metrics", "consistency", "--recogniser", "r"], "without the metric recognition; got 'r'."),
        ([*icons, "--metrics", "recognition", "--recogniser", workdir], "--recogniser must be the directory of"),
        ([*icons, "--metrics"], "--metrics must name metrics; got no value: alignment, "),
        (icons, "--metrics alignment must come with --data of a data set of shapes, which records what captions claim"),
    ):  # fmt: skip
        code, _, err = run("evaluate.py", *arguments)
        assert code == 2 and message in err and err.count("\n") == 1, err


PLUGIN = """
from imagen_jax.evaluation import METRICS

@METRICS.register("brightness")
def brightness(samples):
    return samples.images.mean(axis=(1, 2, 3))
"""


def test_a_metric_from_outside_works_in_every_command_and_its_help(workdir, data, run, tmp_path, monkeypatch):
    file = tmp_path / "brightness.py"
    file.write_text(PLUGIN)
    monkeypatch.setattr(METRICS, "_entries", dict(METRICS._entries))  # forgotten after this test
    common = ["--workdir", workdir, "--data", data, "--num", 5, "--batch-size", 8, "--steps", 2, "--aug-level", 0.3]
    code, _, err = run("evaluate.py", *common, "--metrics", "brightness")
    assert code == 2 and "--metrics must be one of alignment, " in err and "got 'brightness'" in err

    monkeypatch.setenv("IMAGEN_JAX_PLUGINS", str(file))
    for script in ("evaluate.py", "sweep.py"):
        assert "brightness" in run(script, "--help")[1]
    options = ["--guidance-scale", 2.0, "--metrics", "brightness", "consistency", "--output", tmp_path / "out"]
    code, out, err = run("evaluate.py", *common, *options)
    assert code == 0 and "brightness: " in out and "consistency: " in out, err
    assert sorted(os.listdir(tmp_path / "out")) == [
        "brightness.json", "brightness.md", "consistency.json", "consistency.md", "grid.png",
    ]  # fmt: skip
    value = json.loads((tmp_path / "out/brightness.json").read_text())
    code, out, err = run(
        "sweep.py", *common, "--guidance-scale", 2.0, "--score", "brightness", "--output", tmp_path / "s"
    )
    (row,) = json.loads((tmp_path / "s/sweep.json").read_text())
    assert code == 0 and "(brightness " in out, err
    np.testing.assert_allclose(row["brightness"], value, rtol=1e-5)
    assert {"alignment", "consistency", "frechet"} < set(row)
    (workdir / "sampling.json").unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "2"], "--data or --prompts-file must be given, and not both; got neither."),
        (["--data", "{data}", "--steps", "2", "--score", "frechet"], "--score must have a value for every picture"),
        (["--data", "{data}", "--steps", "2", "--metrics", "clip"], "--metrics clip must come with --clip; got none."),
        (["--data", "{data}", "--steps", "2", "--metrics", "clib"], "got 'clib' (did you mean clip?)"),
        (["--data", "{data}"], "sampling options must be given with the values to try; got none"),
        (["--data", "{data}", "--steps", "2", "0"], "steps must be at least 1; got 0"),
        (["--data", "{data}", "--seed", "4294967292", "--steps", "2"], "--seed must be at most 4294967290"),
        (["--data", "{data}", *MANY], "settings must be at most 10000; got 1000000"),
        (["--data", "{data}", "--steps", "2", "--score", "clip"], "--score clip must come with --clip; got none."),
        (["--data", "{data}", "--steps", "2", "--stage", "sr32"], "--stage must be one of base, sr16; got 'sr32'"),
        (["--data", "{data}", "--eta", "0.5", "--sampler", "heun"], "eta must be left out"),
    ],
)
def test_a_sweep_that_cannot_be(workdir, data, run, tmp_path, arguments, message):
    given = [argument.replace("{data}", str(data)) for argument in arguments]
    code, _, err = run("sweep.py", "--workdir", workdir, "--output", tmp_path / "sweep", *given)
    assert code == 2 and message in err
    assert not (tmp_path / "sweep").exists()
