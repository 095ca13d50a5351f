"""The command plan: whether a stage fits, and what would."""

import dataclasses
import runpy
import sys

import pytest

from imagen_jax import chips
from tests.conftest import ROOT


def plan(monkeypatch, capsys, *arguments):
    """Exit status and output of scripts/plan.py --quick."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts/plan.py"), "--quick", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts/plan.py"), run_name="__main__")
    return stop.value.code, capsys.readouterr().out


@pytest.mark.slow
def test_plans_say_whether_a_stage_fits_and_what_would(monkeypatch, capsys):
    big = ["--preset", "quickstart", "--topology", "v5e:2x2", "--stage", "sr64", "--batch", "262144"]
    code, out = plan(monkeypatch, capsys, *big)
    assert code == 1 and "fits                 no" in out
    flags = out.split("nearest that does")[1].split("(")[0].split()
    code, out = plan(monkeypatch, capsys, *big, *flags)  # what it names does fit
    assert code == 0 and "fits                 yes" in out and "images/s" in out


@pytest.mark.slow
def test_a_plan_of_a_cascade_says_what_fits_together_and_one_at_a_time(monkeypatch, capsys):
    cascade = ["--preset", "quickstart", "--topology", "v5e:2x2", "--kind", "cascade", "--batch", "4"]
    code, out = plan(monkeypatch, capsys, *cascade)
    assert code == 0 and "fits                 yes" in out and out.count("of 15.75") == 2
    assert [line.split()[0] for line in out.splitlines()[3:8]] == ["text", "base", "sr64", "all", "one"]
    for memory, status, words in ((0.09, 0, "one at a time: imagen-jax"), (0.01, 1, "no: too large even alone: text")):
        chip = dataclasses.replace(chips.CHIPS["v5e"], memory=int(memory * 2**30))
        monkeypatch.setitem(chips.CHIPS, "v5e", chip)
        code, out = plan(monkeypatch, capsys, *cascade)
        assert code == status and f"fits                 {words}" in out


@pytest.mark.slow
def test_gpus_that_are_not_at_hand_are_planned_for_without_a_compiler(monkeypatch, capsys):
    arguments = ["plan.py", "--preset", "quickstart", "--topology", "h100:4", "--batch", "8"]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts/plan.py"), run_name="__main__")
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "4 devices (h100:4)" in out and "of 78.00" in out and "compiled" not in out
