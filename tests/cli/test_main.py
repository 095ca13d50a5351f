"""The console command: its overview, how it finds a command, and the name in messages."""

import os
import subprocess
import sys

import pytest

from imagen_jax.cli import commands, main
from tests.conftest import ROOT


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit status, stdout, stderr) of imagen-jax."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["/usr/bin/imagen-jax", *arguments])
        try:
            main.main()
            status = 0
        except SystemExit as stop:
            status = stop.code or 0
        return status, *capsys.readouterr()

    return call


def test_the_overview_has_one_line_for_each_command_and_imports_nothing_slow():
    code = (
        "import sys; sys.argv = ['imagen-jax', '--help']; from imagen_jax.cli.main import main; main()\n"
        "print([name for name in ('jax', 'numpy', 'tyro', 'tqdm') if name in sys.modules])"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    lines = out.stdout.splitlines()
    assert lines[-1] == "[]"
    for command in commands.COMMANDS:
        (line,) = [line for line in lines if line.startswith(f"  {command} ")]
        assert line.endswith(".") and len(line) <= 120


def test_version(run):
    assert run("--version") == (0, "imagen-jax 0.1.0\n", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "COMMAND must be one of prepare, embed, train, sample,"),
        (["trian"], "got 'trian' (did you mean train?): --help describes them."),
        (["--seed", "3"], "got '3': --help describes them."),
        (["zzz", "--help"], "got 'zzz': --help"),
    ],
)
def test_what_is_not_a_command_is_one_line(run, arguments, message):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "") and err.startswith("imagen-jax: ") and message in err and err.count("\n") == 1


def test_messages_begin_with_what_was_typed(run):
    assert run("plan", "--quick")[::2] == (
        2, "imagen-jax plan: --preset must be given; got no value: --help lists all options.\n"
    )  # fmt: skip
    assert run("--quick", "plan")[0] == 2


def test_help_shows_examples_as_they_are_typed(run):
    _, out, _ = run("plan", "--help")
    assert out.startswith("usage: imagen-jax plan ") and "imagen-jax plan --preset base64:2b" in out
