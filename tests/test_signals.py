"""A command ends on SIGINT and SIGTERM at any moment: one line, its status, nothing raised."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imagen_jax import signals

ROOT = Path(__file__).parent.parent
BEGIN = """
import sys
sys.argv[0] = "sample.py"
from imagen_jax import signals
signals.install("the same command continues")
"""
GO = "__import__('os').write(1, b'ready\\n')"  # past the buffer; the test waits for one before each signal
LINE = "sample.py: ended by {}; the same command continues\n"
SLEEP = "time.sleep(60)"

# what the process does, and the signals that it gets: its status and what it prints
CASES = {
    "sleeping": ("GO; SLEEP", "INT", 130, LINE),
    "sleeping, SIGTERM": ("GO; SLEEP", "TERM", 143, LINE),
    "busy in Python": ("GO\nwhile True: pass", "INT", 130, LINE),
    "busy in C": ("import ctypes\nGO\nwhile True: ctypes.CDLL(None).sleep(60)", "INT", 130, LINE),
    "busy in C, SIGTERM": ("import ctypes\nGO\nwhile True: ctypes.CDLL(None).sleep(60)", "TERM", 143, LINE),
    "swallowing exceptions": (
        "GO\nwhile True:\n    try: time.sleep(1)\n    except BaseException: pass", "INT", 130, LINE,
    ),
    "in a hook of the garbage collection": (
        "import gc\ngc.callbacks.append(lambda *_: time.sleep(0.2))\nGO\nwhile True: gc.collect()", "INT", 130, LINE,
    ),
    "waiting for a thread": (
        "import threading\nt = threading.Thread(target=time.sleep, args=(60,)); t.start(); GO; t.join()",
        "TERM", 143, LINE,
    ),
    "with stdout to flush": ("print('half a line', end=''); GO; SLEEP", "INT", 130, LINE),
    "with something to tidy up": ("with signals.clean_up(lambda: print('tidy')): GO; SLEEP", "INT", 130, LINE),
    "writing a file": (
        "from imagen_jax.storage import files\n"
        "with files.replacing('{tmp}/file') as file: file.write(b'half'); GO; SLEEP",
        "INT", 130, LINE,
    ),
    "with stderr elsewhere": (
        "import os\nos.dup2(os.open(os.devnull, os.O_WRONLY), 2); GO; SLEEP", "TERM", 143, LINE,
    ),
    "with a callback that fails": ("with signals.clean_up(lambda: 1 / 0): GO; SLEEP", "INT", 130, LINE),
    "with a callback that hangs": ("with signals.clean_up(lambda: SLEEP): GO; SLEEP", "TERM", 143, LINE),
    "a second signal at once": ("with signals.clean_up(lambda: [GO, SLEEP]): GO; SLEEP", "TERM INT", 130, LINE),
    "at the end of Python": (
        "import os\nclass Last:\n    def __del__(self, write=os.write, sleep=time.sleep):\n"
        "        write(1, b'ready\\n'); sleep(1)\nlast = Last()", "TERM", 0, "",
    ),
    "deferred": (
        "r = []; signals.defer(r); GO\nwhile not r: time.sleep(0.01)\nprint(r)\nsys.exit(7)", "INT", 7, "",
    ),
    "deferred, SIGTERM again": (
        "r = []; signals.defer(r); GO\nwhile not r: time.sleep(0.01)\nGO\nwhile not r[1:]: time.sleep(0.01)\n"
        "print(r)\nsys.exit(7)", "TERM TERM", 7, "",
    ),
    "deferred, SIGINT again": (
        "r = []; signals.defer(r); GO\nwhile not r: time.sleep(0.01)\nGO; SLEEP", "INT INT", 130,
        "sample.py: ended by {}, at once; the same command continues from the newest checkpoint\n",
    ),
    "deferred, and no longer": ("signals.defer([]); signals.resume(); GO; SLEEP", "INT", 130, LINE),
    "done": ("pass", "", 0, ""),
    "undone": ("signals.uninstall(); GO; SLEEP", "TERM", -15, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_signal_ends_a_process(tmp_path, case):
    code, sent, status, err = CASES[case]
    code = code.replace("GO", GO).replace("SLEEP", SLEEP).replace("{tmp}", str(tmp_path))
    process = subprocess.Popen(
        [sys.executable, "-c", f"{BEGIN}import time\n{code}"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )  # fmt: skip
    try:
        for name in sent.split():
            assert process.stdout.readline() == "ready\n"
            process.send_signal(signal.Signals[f"SIG{name}"])
        out, found = process.communicate(timeout=60)
    finally:
        process.kill()
    first = sent.split()[0] if sent else ""
    assert (process.returncode, found) == (status, err.format(f"SIG{first}"))
    expected = {"with stdout to flush": "half a line", "with something to tidy up": "tidy\n"}
    expected |= {"deferred": "[2]\n", "deferred, SIGTERM again": "[15, 15]\n"}
    assert out == expected.get(case, "")
    assert not list(tmp_path.iterdir())


CHILDREN = """
import time
from imagen_jax.data import workers
if __name__ == "__main__":
    print("ready", flush=True)
    for _ in workers.run(time.sleep, {i: (0.3,) for i in range(4)}, 2):
        pass
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", [0.0, 0.05, 0.1, 0.5])
def test_a_signal_to_a_whole_group_is_one_line(tmp_path, number, moment):
    """A terminal sends it to workers too, which may not have run a line yet."""
    script = tmp_path / "sample.py"
    script.write_text('if __name__ == "__main__":' + BEGIN.replace("\n", "\n    ") + CHILDREN)
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    process.stdout.readline()
    time.sleep(moment)
    os.killpg(process.pid, number)
    out, err = process.communicate(timeout=30)  # until the workers have closed it too
    assert (process.returncode, out, err) == (128 + number, "", LINE.format(number.name))


@pytest.mark.slow
def test_commands_end_at_random_moments(load_script, tmp_path):
    """A short version of benchmarks/soak_signals.py, over the start of every command."""
    soak, rng = load_script("soak_signals"), random.Random(0)
    place = soak.Place(tmp_path / "place")
    for i, name in enumerate([*soak.COMMANDS, "plan", "prepare", "train"]):
        moment = rng.uniform(0.6, 1.2)  # Python itself has started by then
        came, _ = soak.interrupt(place, name, (signal.SIGINT, signal.SIGTERM)[i % 2], moment)
        assert came in ("ended", "before the script", "STATUS 2") or "STATUS 2" in came, (name, came)
    left = {path.name for path in place.root.iterdir()}
    assert left <= {"preset.py", "data", ".data.unfinished"}, left


def test_without_an_installation_nothing_is_deferred():
    assert signals.defer([]) is False
    signals.resume()
    with signals.clean_up(lambda: None):
        pass
