"""Wrong input to the command lines: one clear line, exit status 2, nothing written."""

import runpy
import sys
from pathlib import Path

import pytest

from imagen_jax.data import sources, transforms

ROOT = Path(__file__).parents[2]
TRAIN = ["train.py", "--preset", "quickstart", "--stage", "base", "--workdir", "{tmp}/run"]
PLAN = ["plan.py", "--quick", "--preset"]
SAMPLE = ["sample.py", "--workdir", "{tmp}/run"]


def run(monkeypatch, capsys, arguments, tmp_path):
    """Exit status and stderr of a script."""
    script, *rest = (argument.replace("{tmp}", str(tmp_path)) for argument in arguments)
    path = str(ROOT / "scripts" / script)
    monkeypatch.setattr(sys, "argv", [path, *rest])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(path, run_name="__main__")
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "--preset", "imagenet", "--stage", "base", "--workdir", "w"], "--preset must be one of"),
        (["train.py", "--preset", "quickstart", "--stage", "sr9", "--workdir", "w"], "must be one of base, sr64"),
        (["train.py", "--preset", "quickstart", "--stage", "base"], "--workdir"),
        ([*TRAIN, "--optim.learning-rat", "1"], "--optim.learning-rat"),
        ([*TRAIN, "--optim.learning-rate", "fast"], "fast"),
        ([*TRAIN, "--process.prediction", "flow"], "flow"),
        ([*TRAIN, "--optim.batch-size", "31"], "divisible by devices x optim.accumulation = 8 x 1; got 31: use 32"),
        ([*TRAIN, "--optim.accumulation", "5"], "multiple of optim.accumulation 5"),
        ([*TRAIN, "--image-size", "18"], "multiple of the network's total stride 4"),
        ([*TRAIN, "--run.fsdp", "3"], "run.fsdp must divide the number of devices 8"),
        ([*TRAIN, "--data.path", "{tmp}/nowhere"], "nowhere"),
        (
            ["train.py", "--preset", "quickstart", "--stage", "sr64", "--workdir", "w", "--low-res-size", "None"],
            "low_res_size must be set for a super-resolution stage",
        ),
        ([*SAMPLE, "--prompts", "a"], "must hold trained stages, but has none"),
        (SAMPLE, 'Give either --prompts "..." or --prompts-file'),
        ([*SAMPLE, "--prompts-file", "{tmp}/empty.txt"], "empty.txt is empty"),
        ([*SAMPLE, "--prompts-file", "{tmp}/missing.txt"], "missing.txt"),
        ([*SAMPLE, "--prompts", "a", "--num", "0"], "--num and --batch-size must be positive"),
        ([*SAMPLE, "--prompts", "a", "--sampler", "euler"], "euler"),
        (["evaluate.py", "--workdir", "w", "--data", "{tmp}/nowhere"], "nowhere"),
        ([*PLAN, "base64:2b", "--topology", "v5x:2x2"], "--topology must be a TPU slice"),
        ([*PLAN, "base64:9b", "--topology", "v5e:2x2"], "size: 300m, 500m, 1b, 2b"),
        ([*PLAN, "base64:300m", "--topology", "v5e:2x2", "--batch", "63"], "4 x 1; got 63: use 64"),
        ([*PLAN, "sr256", "--topology", "v5e:2x2", "--fsdp", "8"], "run.fsdp must divide the number of devices 4"),
        ([*PLAN, "sr256", "--stage", "base"], "--stage must be one of sr256"),
        (["benchmark_training.py", "--preset", "quickstart", "--steps", "0"], "--steps must be at least 1; got 0"),
        ([*PLAN, "sr1024", "--run.height", "3"], "run.height must be a divisor of the rows"),
        (["prepare_data.py", "--output", "out"], "Give either --input FOLDER or --shapes"),
        (["prepare_data.py", "--shapes", "round", "--output", "out"], "round"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(monkeypatch, capsys, tmp_path, arguments, message):
    (tmp_path / "empty.txt").write_text("\n  \n")
    before = sorted(tmp_path.rglob("*"))
    code, err = run(monkeypatch, capsys, arguments, tmp_path)
    assert code == 2
    assert message in err and len(err.strip().splitlines()) == 1, err
    assert sorted(tmp_path.rglob("*")) == before


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
    sources.write(
        {"train": [record] * 8}, tmp_path / "data", name="data", description="Eight black pictures."
    )
    (tmp_path / "encoder").mkdir()
    options = [option.replace("{tiny}", str(ROOT / "tests/goldens/tiny_bert")) for option in options]
    code, err = run(monkeypatch, capsys, [*TRAIN, "--data.path", "{tmp}/data", *options], tmp_path)
    assert code == 2 and message in err and len(err.strip().splitlines()) == 1, err
    assert not (tmp_path / "run").exists()


def plan(monkeypatch, capsys, *arguments):
    """Exit status and output of scripts/plan.py --quick."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts/plan.py"), "--quick", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts/plan.py"), run_name="__main__")
    return stop.value.code, capsys.readouterr().out


def test_plans_say_whether_a_stage_fits_and_what_would(monkeypatch, capsys):
    big = ["--preset", "quickstart", "--topology", "v5e:2x2", "--stage", "sr64", "--batch", "32768"]
    code, out = plan(monkeypatch, capsys, *big)
    assert code == 1 and "fits                 no" in out
    flags = out.split("nearest that does")[1].split("(")[0].split()
    code, out = plan(monkeypatch, capsys, *big, *flags)  # what it names does fit
    assert code == 0 and "fits                 yes" in out and "images/s" in out


def test_a_step_is_compiled_and_timed(monkeypatch, capsys):
    small = (
        "--image-size 8 --network.channels 8 --network.num-res-blocks 1 --network.attention False --steps 2"
    )
    arguments = ["--preset", "quickstart", *small.split(), "--run.fsdp", "2", "--run.height", "2"]
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts/benchmark_training.py"), *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts/benchmark_training.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert not stop.value.code and "8 x cpu, fsdp 2, height 2" in out, out
    step, rate = (float(out.split(f"\n{name}")[1].split()[0]) for name in ("step", "throughput"))
    assert abs(step * rate - 8) < 0.1  # the batch, to the digits that are printed


def test_help_lists_the_fields_of_the_preset(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", [*(a.replace("{tmp}", str(tmp_path)) for a in TRAIN), "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts/train.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert stop.value.code in (0, None) and "--optim.learning-rate" in out and "--workdir" in out
