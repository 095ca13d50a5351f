"""The memory allocator of programs that compute on a CPU.

XLA on CPUs takes memory for temporaries at each step and returns it. The C library hands it back to the system, which
clears it before it gives it again: a tenth of a train step in huge pages, more in small ones. mimalloc keeps it. glibc
has no options that do: thresholds without limit keep the memory of the main thread alone, and with one arena for all
threads the steps of a small network take half as long again.
"""

import os
import sys
from collections.abc import Mapping
from importlib import util
from pathlib import Path

_PRELOAD, _TUNABLES, _HUGE_PAGES = "LD_PRELOAD", "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_PURGE, _DELAY = "MIMALLOC_PURGE_DELAY", "300000"  # ms: every five minutes all unused memory goes back to the system
_RESTARTED = "IMAGEN_JAX_RESTARTED"  # the process that was
_ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart() -> None:
    """Start the program of this process again with a better allocator; return where that would change nothing.

    The allocator is mimalloc, where JAX computes on a CPU and the package cmeel-mimalloc is installed. Otherwise it is
    glibc's with huge pages, on systems that give them on request. Where the environment has LD_PRELOAD mimalloc is not
    used, whether it is empty or not, and options that the environment has stay. Processes read all this only when they
    start: call it before anything is done. Without effect in a process that runs something else, such as a notebook,
    or one that has imported JAX.
    """
    script = getattr(sys.modules["__main__"], "__file__", "")
    is_script = Path(sys.argv[0]).absolute() == Path(script).absolute()  # as typed, and as Python writes it
    is_own = is_script and sys.orig_argv[-len(sys.argv) :] == sys.argv and "jax" not in sys.modules
    # Once, though somebody takes the variables away again: a process stays the same when it starts another program.
    is_first = os.environ.get(_RESTARTED) != str(os.getpid())
    if is_own and is_first and (added := _additions(os.environ)):
        os.environ.update(added, **{_RESTARTED: str(os.getpid())})
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def without(environment: Mapping[str, str]) -> dict[str, str]:
    """Return an environment without the values that `restart` sets, for programs that run as they are installed."""
    set_here = {_PRELOAD: str(mimalloc()), _PURGE: _DELAY, _RESTARTED: str(os.getpid())}
    rest = {name: value for name, value in environment.items() if set_here.get(name) != value}
    tunables = [each for each in rest.pop(_TUNABLES, "").split(":") if each not in ("", f"{_HUGE_PAGES}=1")]
    return rest | ({_TUNABLES: ":".join(tunables)} if tunables else {})


def mimalloc() -> Path | None:
    """Return the library of the package cmeel-mimalloc, or None where it is missing or cannot be preloaded."""
    from importlib import metadata

    try:
        files = metadata.files("cmeel-mimalloc") or []
    except metadata.PackageNotFoundError:
        return None
    library = next((Path(file.locate()).resolve() for file in files if file.name == "libmimalloc.so"), None)
    # Spaces and colons separate libraries in LD_PRELOAD.
    return None if library is None or set(" :") & set(str(library)) else library


def _additions(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that `restart` is to set."""
    tunables, preloaded = environment.get(_TUNABLES, ""), environment.get(_PRELOAD)
    if sys.platform == "linux" and preloaded is None and _computes_on_cpu(environment):
        library = mimalloc()
        if library is not None and _can_be_loaded(library):
            return {_PRELOAD: str(library), _PURGE: environment.get(_PURGE, _DELAY)}
    if "malloc" not in (preloaded or "") and _HUGE_PAGES not in tunables and _has_huge_pages():
        return {_TUNABLES: ":".join(filter(None, [tunables, f"{_HUGE_PAGES}=1"]))}
    return {}


def _can_be_loaded(library: Path) -> bool:
    """Whether it and the libraries it needs are there: small systems lack libatomic."""
    import ctypes

    try:
        ctypes.CDLL(str(library))
    except OSError:
        return False
    return True


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
