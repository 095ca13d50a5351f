"""Scripts as a person runs them: their status, their error, their help."""

import runpy
import sys

import pytest

from tests.conftest import ROOT

TRAIN = ["train.py", "--preset", "quickstart", "--stage", "base", "--workdir", "{tmp}/run"]


def status_and_error(monkeypatch, capsys, arguments, tmp_path):
    """Exit status and stderr of a script."""
    script, *rest = (argument.replace("{tmp}", str(tmp_path)) for argument in arguments)
    path = str(ROOT / ("" if "/" in script else "scripts") / script)
    monkeypatch.setattr(sys, "argv", [path, *rest])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(path, run_name="__main__")
    return stop.value.code, capsys.readouterr().err


def help_of(monkeypatch, capsys, *arguments):
    """What a script prints for --help, without the frames around its options."""
    monkeypatch.setattr(sys, "argv", [str(ROOT / "scripts" / arguments[0]), *arguments[1:], "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(sys.argv[0], run_name="__main__")
    assert stop.value.code in (0, None)
    return capsys.readouterr().out.translate(str.maketrans("│|", "  "))


def one_line(text):
    return " ".join(text.split())
