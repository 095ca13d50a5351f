"""Where messages go: stdout or stderr, as lines or JSON, from the first process or all."""

import dataclasses
import datetime
import json
import logging
import sys
import threading
import warnings

import jax
import pytest

from imagen_jax import progress, signals
from imagen_jax.cli import logs, program

_LOGGER = logging.getLogger("imagen_jax.test")


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The default configuration and hooks again after each test."""
    for owner, name in ((warnings, "showwarning"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(signals, "format_line", str)
    yield
    logs.configure("", logs.Options())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Nothing:
    """A command without options."""


def speak(_) -> int:
    """A command that informs, warns, has a result and fails."""
    _LOGGER.info("2 pictures written", extra={"fields": {"pictures": 2}})
    warnings.warn("a caption was cut", stacklevel=1)
    print("| result |")
    raise ValueError("seed must be at least 0; got -1.")


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (stdout, stderr) of a command that fails."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["speak.py", *arguments])
        with pytest.raises(SystemExit) as stop:
            program.run(speak, lambda args: (args, Nothing())[1])
        assert stop.value.code == 2
        return capsys.readouterr()

    return call


def test_information_goes_to_stdout_and_warnings_and_errors_to_stderr(run):
    assert run() == (
        "2 pictures written\n| result |\n",
        "speak.py: warning: a caption was cut\nspeak.py: seed must be at least 0; got -1.\n",
    )


def test_quiet_leaves_results_warnings_and_errors(run):
    out, err = run("--quiet")
    assert out == "| result |\n" and err.count("\n") == 2
    assert not progress.has_bars


def test_json_is_one_object_per_line_on_stderr(run):
    out, err = run("--log-json")
    assert out == "| result |\n"
    rows = [json.loads(line) for line in err.splitlines()]
    assert [row["level"] for row in rows] == ["info", "warning", "error"]
    assert rows[0]["message"] == "2 pictures written" and rows[0]["fields"] == {"pictures": 2}
    assert rows[1].keys() == rows[2].keys() == {"time", "level", "message"}
    for row in rows:
        assert datetime.datetime.fromisoformat(row["time"]).utcoffset() == datetime.timedelta(0)
    assert json.loads(signals.format_line("speak.py: ended by SIGTERM"))["message"] == "speak.py: ended by SIGTERM"


def test_both_together_leave_warnings_and_errors_as_json(run):
    _, err = run("--quiet", "--log-json")
    assert [json.loads(line)["level"] for line in err.splitlines()] == ["warning", "error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--quiet", "--quiet"], "--quiet must be given once"),
        (["--quiet", "very"], "--quiet must stand without a value; got 'very'"),
        (["--log-json=yes"], "--log-json must stand without a value; got 'yes'"),
    ],
)
def test_wrong_options_of_all_commands_are_one_line(run, arguments, message):
    out, err = run(*arguments)
    assert out == "" and message in err and err.count("\n") == 1


def test_progress_has_fields(run, capsys, monkeypatch):
    logs.configure("train.py", logs.Options(log_json=True))
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.Progress(100, "steps", "base") as shown:
        shown.status("loss 0.5")
        now[0] += 50
        shown.update(25)
    first, last = map(json.loads, capsys.readouterr().err.splitlines())
    assert first["fields"] == {
        "task": "base", "done": 25, "total": 100, "unit": "steps", "per_second": 0.5, "seconds_left": 150.0,
        "status": "loss 0.5",
    }  # fmt: skip
    assert last["fields"]["seconds"] == 50


@pytest.mark.parametrize("process", [0, 1])
def test_only_the_first_process_informs_but_all_warn(monkeypatch, capsys, process):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    logs.configure("train.py", logs.Options())
    _LOGGER.info("step 1")
    _LOGGER.warning("slow")
    assert capsys.readouterr() == ("step 1\n" * (process == 0), "train.py: warning: slow\n")
