"""A watchdog ends a process that is stuck."""

import subprocess
import sys

import pytest

# --- watchdog -------------------------------------------------------------------------------------

STUCK = """
import time
from imagen_jax.training.stopping import Watchdog
with Watchdog(4) as watchdog:
    for _ in range(5):
        time.sleep(1)
        watchdog.alive()
    watchdog.rest()
    time.sleep(5)
    watchdog.alive()
    print("alive", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_process_that_is_stuck_ends_itself():
    done = subprocess.run([sys.executable, "-c", STUCK], capture_output=True, text=True, timeout=50)
    assert done.returncode == 1 and done.stdout == "alive\n"
    assert "Timeout" in done.stderr and "line 12 in <module>" in done.stderr
