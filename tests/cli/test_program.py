"""A program ends with one line and its status."""

import os
import sys
import threading
import warnings

import pytest

from imagen_jax import signals
from imagen_jax.cli import logs, program


@pytest.fixture(autouse=True)
def restored(monkeypatch):
    """The default configuration and hooks again after each test."""
    for owner, name in ((warnings, "showwarning"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    monkeypatch.setattr(signals, "format_line", str)
    yield
    logs.configure("", logs.Options())


def test_an_error_of_a_thread_is_one_line(capsys):
    logs.configure("train.py", logs.Options())
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    assert capsys.readouterr().err == "train.py: in the background: division by zero\n"


def test_output_that_nobody_reads_any_more_is_dropped(monkeypatch):
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdout", os.fdopen(write, "w"))
    assert not program._is_output_closed()
    os.close(read)
    assert program._is_output_closed()
    print("more", flush=True)
