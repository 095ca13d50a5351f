"""Flags of XLA are defaults: those that a user has set stay."""

import subprocess
import sys

import pytest

from imagen_jax.cli import xla_flags

NAME = xla_flags.CPU_LIBRARY.partition("=")[0]


@pytest.mark.parametrize("given", ["", "--xla_force_host_platform_device_count=2"])
def test_the_flag_is_added_to_those_of_the_user(monkeypatch, given):
    monkeypatch.setenv("XLA_FLAGS", given)
    xla_flags.set_defaults()
    xla_flags.set_defaults()
    assert xla_flags.os.environ["XLA_FLAGS"].split() == [*given.split(), xla_flags.CPU_LIBRARY]


def test_another_value_of_the_user_stays(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", f"{NAME}=LIBRARY_FUSION_TYPE_INVALID")
    xla_flags.set_defaults()
    assert xla_flags.os.environ["XLA_FLAGS"] == f"{NAME}=LIBRARY_FUSION_TYPE_INVALID"


def test_an_unknown_jaxlib_gets_no_flag(monkeypatch):
    monkeypatch.setattr(xla_flags, "version", lambda name: "0.99.0")
    monkeypatch.setenv("XLA_FLAGS", "")
    xla_flags.set_defaults()
    assert xla_flags.os.environ["XLA_FLAGS"] == ""


def test_this_jaxlib_knows_the_flag():
    code = "from imagen_jax.cli import xla_flags; xla_flags.set_defaults(); import jax; print(jax.numpy.ones(2).sum())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "2.0\n"), done.stderr
