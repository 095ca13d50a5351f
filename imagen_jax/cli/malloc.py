"""The memory allocator of programs that compute on a CPU.

XLA on CPUs takes memory for temporaries at each step and returns it. The C library hands it back to the system, which
clears it anew each time: up to a tenth of a train step, in pages of 4 kB twice that. mimalloc keeps what is taken again
within a minute. glibc's own options do not serve: thresholds without limit keep the memory of the main thread alone,
and with one arena for all threads the steps of a small network take half as long again.
"""

import os
import sys
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path

_PRELOAD, _TUNABLES, _TUNABLE = "LD_PRELOAD", "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_MIMALLOC = {
    "MIMALLOC_PURGE_DELAY": "60000",  # milliseconds until unused memory goes back: longer than most steps take
    "MIMALLOC_ALLOW_LARGE_OS_PAGES": "1",  # memory in pages of 2 MB, where the system gives them
}
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart() -> None:
    """Start the program of this process again with a better allocator; return where that would change nothing.

    It is mimalloc, where JAX computes on a CPU and the package is installed, and otherwise glibc's with huge pages, on
    systems that give them on request. A library that the variable LD_PRELOAD names comes first, and so do options
    that the environment has; an empty LD_PRELOAD leaves the C library's. Processes read these only when they start:
    call it before anything is done. Without effect in a process that runs something else, such as a notebook, or one
    that has imported JAX.
    """
    script = getattr(sys.modules["__main__"], "__file__", "")
    is_script = Path(sys.argv[0]).absolute() == Path(script).absolute()  # as typed, and as Python writes it
    is_own = is_script and sys.orig_argv[-len(sys.argv) :] == sys.argv and "jax" not in sys.modules
    if is_own and (added := _additions(os.environ)):
        os.environ.update(added)
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def without(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without what `restart` sets, for programs that are to run as they are installed."""
    rest = {name: value for name, value in environment.items() if name not in (*_MIMALLOC, _TUNABLES)}
    if rest.get(_PRELOAD) == str(mimalloc()):
        del rest[_PRELOAD]
    return rest


def mimalloc() -> Path | None:
    """Return the library of the package cmeel-mimalloc, or None where it is missing or cannot be preloaded."""
    try:
        files = metadata.files("cmeel-mimalloc") or []
    except metadata.PackageNotFoundError:
        return None
    found = next((file.locate() for file in files if file.name == "libmimalloc.so"), None)
    # Spaces and colons separate libraries there.
    return None if found is None or set(" :") & set(str(found)) else Path(found).resolve()


def _additions(environment: Mapping[str, str]) -> dict[str, str]:
    """Return what the environment lacks."""
    given, preloaded = environment.get(_TUNABLES, ""), environment.get(_PRELOAD)
    if sys.platform == "linux" and preloaded is None and _computes_on_cpu(environment) and (library := mimalloc()):
        options = {name: value for name, value in _MIMALLOC.items() if name not in environment}
        return {_PRELOAD: str(library), **options}
    if "malloc" not in (preloaded or "") and _TUNABLE not in given and _has_huge_pages():
        return {_TUNABLES: ":".join(filter(None, [given, f"{_TUNABLE}=1"]))}
    return {}


def _computes_on_cpu(environment: Mapping[str, str]) -> bool:
    """Whether JAX will, as far as can be told without importing it."""
    if platforms := environment.get("JAX_PLATFORMS"):
        return platforms.split(",")[0] == "cpu"
    return not any(util.find_spec(name) for name in ("libtpu", "jax_plugins"))


def _has_huge_pages() -> bool:
    """Whether the system gives huge pages on request, and the C library can request them: glibc from 2.35."""
    try:
        if "[madvise]" not in _ENABLED.read_text():
            return False
        library, _, release = os.confstr("CS_GNU_LIBC_VERSION").partition(" ")
    except (OSError, ValueError, AttributeError):
        return False
    return library == "glibc" and tuple(map(int, release.split(".")[:2])) >= (2, 35)
