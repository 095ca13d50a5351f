"""Benchmarks on pictures and stages so small that the numbers say nothing, but are there; wrong options of others."""

import importlib.util
import json
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

from imagen_jax import chips
from imagen_jax.planning import estimate

SCRIPT = str(Path(__file__).resolve().parents[1] / "benchmarks/data.py")
SMALL = "--sizes 8 16 --width 40 --height 30 --num-pictures 2 --batch-size 2 --num-batches 2 --rounds 2"


def run(monkeypatch, capsys, arguments):
    monkeypatch.setattr(sys, "argv", [SCRIPT, *arguments.split()])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(SCRIPT, run_name="__main__")
    return stop.value.code, *capsys.readouterr()


def test_each_size_has_its_rate(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, f"{SMALL} --crop random --num-threads 1")
    assert not code and "2 JPEGs of 40x30" in out, out
    rows = [line.split() for line in out.splitlines()[-2:]]
    assert [row[0] for row in rows] == ["8", "16"] and all(float(row[1]) > 0 for row in rows)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_is_shown_along_the_way(monkeypatch, capsys):
    code, out, _ = run(monkeypatch, capsys, "--memory 1000 --batch-size 10")
    assert not code and [line.split("%")[0].strip() for line in out.splitlines()] == ["1", "10", "50", "100"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("--rounds 0", "--rounds must be at least 1; got 0"),
        ("--torch-draft", "give both"),
        ("--crop top", "crop"),
        ("--memory 10 --batch-size 11", "--memory must be at least --batch-size"),
        ("--against-torch", "--against-torch needs torch"),
        ("--memory -1", "--memory must be at least 0"),
        ("--memory 1000 --against-torch", "--against-torch has no effect with --memory"),
        ("--memory 1000 --sizes 8", "--sizes has no effect with --memory"),
        ("--memory 1000 --num-pictures 2", "--num-pictures has no effect with --memory"),
        ("--sizes 8 0", "--sizes must be"),
        ("--num-threads -1", "--num-threads must be at least 0; got -1"),
        ("--num-workers -1", "--num-workers must be at least 0; got -1"),
        ("--quality 900", "--quality must lie in 1..100; got 900"),
    ],
)
def test_wrong_options_are_one_line(monkeypatch, capsys, arguments, message):
    if "needs torch" in message and importlib.util.find_spec("torch"):
        pytest.skip("torch is here")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", None)  # no work has begun
    code, _, err = run(monkeypatch, capsys, arguments)
    assert code == 2 and message in err and err.count("\n") == 1, err


def test_ratios_are_those_of_each_round(load_script):
    beside = load_script("imagen_pytorch")
    options = beside.Options(peer_python=Path("python"), batch_size=4, train_steps=5, threads=2)
    facts = {"parameters": 8_100_000, "flops": 8.5e9, "threads": 2, "versions": "x 1"}
    taken = {
        "train": ([[10.0, 18.0], [20.0, 30.0], [10.0, 20.0]], [[15.0, 20.0], [20.0, 30.0], [12.0, 30.0]]),
        "sample": ([[2.0, 4.0]], [[4.0, 8.0]]),
    }
    table = beside.format_table(options, {"ours": facts, "theirs": facts}, taken)
    assert "| ours | 8.10M | 8.50 | 2 | x 1 |" in table
    assert "| train | 2 (1 to 2) | 1.33 (1 to 1.67) | 1.2 (1 to 1.5) | 1 | 1.5 |" in table
    assert "| sample | 2 (2 to 2) | 1 (1 to 1) | 2 (2 to 2) | 1 | 2 |" in table


@pytest.mark.parametrize(
    ("option", "message"),
    [("--rounds 0", "--rounds must be at least 1; got 0"), ("", "it ended saying: ")],
)
def test_a_peer_that_does_not_answer_is_one_line(run_script, option, message):
    python = sys.executable if importlib.util.find_spec("imagen_pytorch") is None else "false"
    ran = run_script("../benchmarks/imagen_pytorch.py", "--peer-python", python, *option.split())
    assert ran.status == 2 and message in ran.err and ran.err.count("\n") == 1, ran.err


def test_a_python_without_diffusers_is_one_line(run_script):
    ran = run_script("../benchmarks/deepfloyd.py", "--peer-python", "false")
    assert ran.status == 2 and "with torch and diffusers; it ended" in ran.err and ran.err.count("\n") == 1, (
        ran.err
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--train-steps 0", "--train-steps must be at least 1; got 0"),
        ("--minutes 5 3", "--minutes must be rising numbers, 0 at least"),
        ("--only imagen-pytorch", "--peer-python must name a Python that has imagen-pytorch 2.1"),
        ("--preset nowhere", "--preset must be one of"),
        ("--only imagen_jax --data nowhere", "nowhere must be a data set"),
    ],
)
def test_what_cannot_be_compared_is_one_line(run_script, tmp_path, options, message):
    output = tmp_path / "output"
    ran = run_script("../benchmarks/time_to_quality.py", "--output", output, *options.split())
    assert ran.status == 2 and message in ran.err and ran.err.count("\n") == 1, ran.err
    assert not output.exists()


def test_quality_is_drawn_and_listed_against_time(load_script):
    compared = load_script("time_to_quality")
    judged = {"color": 100.0, "shape": 50.0, "all": 25.0, "frechet": 12.34}
    result = {
        "parameters": 3_200_000, "versions": "x 1",
        "points": [{"minutes": 1.25, "pictures": 7200, **judged}],
        "sampling": [{"steps": 8, "seconds": 0.0574, **judged}],
    }  # fmt: skip
    table = compared.format_tables({"imagen_jax": result})
    assert "imagen_jax: 3.20M parameters, x 1" in table
    assert "| imagen_jax | 1.2 | 7,200 | 100.0 | 50.0 | 25.0 | 12.3 |" in table
    assert "| imagen_jax | 8 | 0.0574 | 100.0 | 50.0 | 25.0 | 12.3 |" in table
    assert compared.plot(dict.fromkeys(compared.NAMES, result)).startswith(b"\x89PNG")


TINY = """
from imagen_jax.config import SamplingConfig, StageConfig, TextConfig, UNetConfig

def get_config():
    network = UNetConfig((8,), (1,), (True,), embedding=32, head_dim=8)
    text, sampling = TextConfig(encoder="test", width=8, length=5), SamplingConfig(steps=4)
    return (StageConfig(image_size=8, network=network, text=text, sampling=sampling),)
"""


@pytest.fixture
def tiny_preset(tmp_path):
    path = tmp_path / "tiny.py"
    path.write_text(TINY)
    return str(path)


@pytest.mark.slow
def test_costs_of_a_stage(load_script, monkeypatch, capsys, tmp_path, tiny_preset):
    cost = load_script("cost")
    found = {"link_bytes": 2 * 10**9, "peak_bytes": 2**30, "collectives": {"all-reduce": [3, 10**9]}}
    monkeypatch.setattr(cost, "compiled_figures", lambda options, config, topology: found)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: name == "libtpu" or find_spec(name, *of)
    )
    values = {
        "batches": (8,),
        "sizes": (8, 16),
        "lengths": (5,),
        "steps": (4, 8),
        "chips": (8, 16),
        "fsdp": (2,),
    }
    cost.main(cost.Options(preset=tiny_preset, topology="v5e:2x2", batch=8, output=tmp_path, **values))
    result, out = json.loads((tmp_path / "cost.json").read_text()), capsys.readouterr().out
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")
    rows = {(each["kind"], each["axis"], each["value"]): each for each in result["estimated"]}
    assert len(rows) == 10
    assert rows["train", "sizes", 8] | {"axis": "lengths", "value": 5} == rows["train", "lengths", 5]
    work = lambda *point: rows[point]["tflop_an_image"]
    assert work("train", "sizes", 16) > 2 * work("train", "sizes", 8)
    assert work("sample", "steps", 8) == pytest.approx(2 * work("sample", "steps", 4), rel=0.1)
    few, many = result["compiled"]
    assert (few["images"], many["images"]) == (16, 32) and few["seconds"] == pytest.approx(many["seconds"])
    links = found["link_bytes"] / chips.CHIPS["v5e"].links
    rest = max(few["seconds"]["compute"], few["seconds"]["memory"])
    assert few["bound"] == "links" and few["links_share"] == pytest.approx(links / (links + rest))
    assert (
        "| train step, pixels a side | 16 |" in out and "| 16 | 2 | all-reduce 0.93 (3) | 1.00 | 10 |" in out
    )


def test_without_a_compiler_for_tpus_one_line_says_so(load_script, monkeypatch, capsys, tiny_configs):
    cost = load_script("cost")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    options = cost.Options(chips=(8,))
    assert cost.compiled_points(options, tiny_configs[0], 16, chips.CHIPS["v5e"]) == []
    assert capsys.readouterr().out == "Nothing is compiled for --chips, which needs libtpu.\n"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--topology v5e:5", "--topology must be a TPU slice"),
        ("--preset none", "--preset must be one of base64"),
        ("--stage sr256", "--stage must be one of base; got 'sr256'"),
        ("--batches 30", "use 32"),
        ("--batch 0", "optim.batch_size must be at least 1; got 0"),
        ("--sizes 60", "image_size must be a positive multiple of the network's total stride 8; got 60"),
        ("--preset sr256 --sizes 66", "--sizes must be multiples of 4"),
        ("--lengths 0", "--lengths must be rising numbers, 1 at least"),
        ("--steps 8 4", "--steps must be rising numbers, 1 at least"),
        (
            "--chips 12",
            "--chips must be numbers of chips of TPU v5e slices: 4, 8, 16, 32, 64, 128, 256; got 12",
        ),
        ("--fsdp 3", "fsdp must divide the number of devices 8; got 3"),
        ("--no-chips", "--no-chips"),
    ],
)
def test_wrong_options_of_cost_are_one_line(run_script, monkeypatch, tmp_path, option, message):
    monkeypatch.setattr(estimate, "estimate", None)  # no work has begun
    ran = run_script("../benchmarks/cost.py", *option.split(), "--output", tmp_path / "cost")
    assert ran.status == 2 and message in ran.err and ran.err.count("\n") == 1, ran.err
    assert not ran.out and not (tmp_path / "cost").exists()
