"""Sampling options on command lines, also of methods from outside the package."""

import pytest

from imagen_jax.cli import parsing, sample


def test_help_describes_methods_from_outside(outside, capsys):
    with pytest.raises(SystemExit):
        parsing.parse(sample.Options, "", ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "unipc|mine" in text
    assert "--eager-gain FLOAT [...] mine: share of the way. (default: the stage's own, else 0.5)" in text
