"""Large arrays in huge pages of memory, where Linux gives them to programs that ask.

XLA on CPUs takes memory for temporaries at each step and returns it. In pages of 4 kB the system spends up to a tenth
of a train step on handing them out.

Keeping the memory instead (thresholds of mmap and trim without limit, one arena) is not done: on two cores it makes
train steps of a network of 8M parameters 11 % faster, and those of the preset quickstart's base, whose threads then
wait for each other, 50 % slower.
"""

import os
import sys
from pathlib import Path

_TUNABLES, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart() -> None:
    """Start the program of this process again so that it has huge pages; return where that would change nothing.

    The C library reads its options only when a process starts. Call it before anything is done. Without effect in a
    process that runs something else, such as a notebook, or one that has imported JAX.
    """
    script = getattr(sys.modules["__main__"], "__file__", "")
    is_script = Path(sys.argv[0]).absolute() == Path(script).absolute()  # as typed, and as Python writes it
    is_own = is_script and sys.orig_argv[-len(sys.argv) :] == sys.argv and "jax" not in sys.modules
    given = os.environ.get(_TUNABLES, "")
    if is_own and _TUNABLE not in given and _on_request():
        os.environ[_TUNABLES] = ":".join(filter(None, [given, f"{_TUNABLE}=1"]))
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _on_request() -> bool:
    """Whether the system gives huge pages on request, and the C library can request them: glibc from 2.35."""
    try:
        if "[madvise]" not in _ENABLED.read_text():
            return False
        library, _, release = os.confstr("CS_GNU_LIBC_VERSION").partition(" ")
    except (OSError, ValueError, AttributeError):
        return False
    return library == "glibc" and tuple(map(int, release.split(".")[:2])) >= (2, 35)
