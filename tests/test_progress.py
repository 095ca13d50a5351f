"""A bar where stderr is a terminal; elsewhere a line now and then, few of them however long it takes."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from imagen_jax import progress

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clock(monkeypatch):
    """Seconds that tests add to."""
    now = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_says_how_many_how_fast_and_how_long(clock, capsys):
    with progress.Progress(100, "steps", "base", done=10) as shown:
        for _ in range(40):
            clock[0] += 1
            shown.status("loss 0.5")
            shown.update()
    out, err = capsys.readouterr()
    assert err == "" and out.splitlines() == [
        "base: 40/100 steps, 1 steps/s, 1m00s left, loss 0.5",
        "base: 50/100 steps in 40s, loss 0.5",
    ]


def test_time_for_something_else_is_left_out_of_the_speed(clock, capsys):
    with progress.Progress(100, "steps") as shown:
        clock[0] += 600  # compiling
        shown.resume()
        clock[0] += 40
        shown.update(10)
    assert capsys.readouterr().out.splitlines()[0] == "10/100 steps, 0.25 steps/s, 6m00s left"


@pytest.mark.parametrize(
    ("total", "seconds", "most"),
    [(100, 0.001, 0), (1000, 0.1, 4), (100_000, 1, 200), (100_000, 10, 250), (20, 3600, 21), (0, 1, 0)],
)
def test_lines_are_few(clock, capsys, total, seconds, most):
    for _ in progress.over(range(total), total, "pictures", "sampling"):
        clock[0] += seconds
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= most + 1 and sum(map(len, lines)) < 20_000
    assert len(lines) >= min(most, 3)


def test_a_number_that_is_not_known_has_no_end(clock, capsys):
    for _ in progress.over(iter(range(40)), None, "pictures"):
        clock[0] += 1
    assert capsys.readouterr().out.splitlines() == ["30 pictures, 1 pictures/s", "40 pictures in 40s"]


def test_nothing_is_shown_if_it_should_not(clock, capsys):
    with progress.Progress(10, "steps", shown=False) as shown:
        clock[0] += 100
        shown.update(5)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0s"), (0.4, "0s"), (59.6, "1m00s"), (61, "1m01s"), (3599, "59m59s"), (3600, "1h00m"), (200_000, "55h33m")],
)  # fmt: skip
def test_durations(seconds, text):
    assert progress.duration(seconds) == text


IN_A_TERMINAL = """
import sys
from imagen_jax import progress
with progress.Progress(3, "steps", "base") as shown:
    for i in range(3):
        shown.status(f"loss {i}")
        shown.update()
        progress.logger.info(f"line {i}")
print(sys.stderr.isatty())
"""


@pytest.mark.parametrize("columns", [0, 60, 200])
def test_a_terminal_shows_a_bar_that_lines_do_not_break(columns):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-c", IN_A_TERMINAL]
    done = subprocess.run(command, stdout=theirs, stderr=theirs, stdin=theirs, cwd=ROOT, timeout=60)
    os.close(theirs)
    shown = b""
    try:
        while more := os.read(ours, 65536):
            shown += more
    except OSError:  # the end of a terminal
        pass
    os.close(ours)
    text = shown.decode()
    assert done.returncode == 0 and "True" in text
    assert "base: 100%" in text and "3/3" in text and "loss 2" in text and "\r" in text
    assert "steps in" not in text  # the line of a log
    for i in range(3):
        assert f"\rline {i}\r\n" in text
