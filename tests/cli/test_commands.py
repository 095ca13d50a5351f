"""Every command has a script, and examples are shown as they are typed."""

import sys

from imagen_jax.cli import commands
from tests.conftest import ROOT


def test_every_command_has_a_script(monkeypatch):
    for command, (script, _) in commands.COMMANDS.items():
        assert f'main.run("{command}")' in (ROOT / "scripts" / script).read_text()
        monkeypatch.setattr(sys, "argv", [f"scripts/{script}"])
        assert commands.typed("sample") == "python scripts/sample.py"
        monkeypatch.setattr(sys, "argv", [f"imagen-jax {command}"])
        assert commands.typed("sample") == "imagen-jax sample"
