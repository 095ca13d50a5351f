"""The command plan: whether a stage fits, and what would."""

import runpy
import sys

import pytest

from tests.conftest import ROOT


def plan(monkeypatch, capsys, *arguments):
    """Exit status and output of scripts/plan.py --quick."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts/plan.py"), "--quick", *arguments])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "scripts/plan.py"), run_name="__main__")
    return stop.value.code, capsys.readouterr().out


@pytest.mark.slow
def test_plans_say_whether_a_stage_fits_and_what_would(monkeypatch, capsys):
    big = ["--preset", "quickstart", "--topology", "v5e:2x2", "--stage", "sr64", "--batch", "32768"]
    code, out = plan(monkeypatch, capsys, *big)
    assert code == 1 and "fits                 no" in out
    flags = out.split("nearest that does")[1].split("(")[0].split()
    code, out = plan(monkeypatch, capsys, *big, *flags)  # what it names does fit
    assert code == 0 and "fits                 yes" in out and "images/s" in out
