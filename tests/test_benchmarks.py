"""benchmarks/data.py on pictures so small that the numbers say nothing, but are there; those beside other libraries."""

import importlib.util
import runpy
import sys
import tempfile
from pathlib import Path

import pytest

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
    assert ran.status == 2 and "with torch and diffusers; it ended" in ran.err and ran.err.count("\n") == 1, ran.err
