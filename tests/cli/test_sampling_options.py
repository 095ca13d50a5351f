"""Sampling options on command lines, also of methods from outside the package."""


import pytest

from imagen_jax.cli import parsing, sample
from tests.cli.conftest import help_of, one_line


def test_help_describes_methods_from_outside(outside, capsys):
    with pytest.raises(SystemExit):
        parsing.parse(sample.Options, "", ["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "unipc|mine" in text
    assert "--eager-gain FLOAT [...] mine: share of the way. (default: the stage's own, else 0.5)" in text


def test_the_help_of_sampling_options_says_what_they_are_without_a_value(monkeypatch, capsys):
    out = one_line(help_of(monkeypatch, capsys, "sample.py"))
    for line in (
        "--sampler ddim ddpm dpmpp_2m dpmpp_2m_sde heun unipc [...] Method that goes from noise to image. (default:",
        "(default: the stage's own, else 1.003)",
        "--cap FLOAT [...] dynamic: upper bound of the threshold. (default: the stage's own, else none)",
        "--final-logsnr FLOAT [...] every sampler: log-SNR at which the finished image, without noise, is denoised "
        "once more, which smooths grain, the more the lower it is; 20 is off. (default: the stage's own, else 20)",
        "None: the stage's own",
    ):
        assert line in out
