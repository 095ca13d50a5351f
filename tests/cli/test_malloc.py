"""Programs are started again with another allocator where that changes something, and only programs of ours."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from imagen_jax.cli import malloc

SCRIPT = """
import os, sys
from imagen_jax.cli import malloc
from pathlib import Path
malloc._ENABLED = Path(sys.argv[1])
print("run", flush=True)
{before}
malloc.restart()
malloc.restart()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[2:], sys.flags.utf8_mode)
import ctypes
option = getattr(ctypes.CDLL(None), "mi_option_get", None)  # there if mimalloc is preloaded
print(option and option(15))  # mi_option_purge_delay
left = malloc.without(os.environ)
print(left.keys() & {{"LD_PRELOAD", "GLIBC_TUNABLES", "MIMALLOC_PURGE_DELAY", "IMAGEN_JAX_RESTARTED"}})
"""
GLIBC_ONLY = {"LD_PRELOAD": ""}
needs_glibc = pytest.mark.skipif(
    not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library"
)
needs_mimalloc = pytest.mark.skipif(
    "LD_PRELOAD" not in malloc._additions({"JAX_PLATFORMS": "cpu"}), reason="mimalloc is not installed"
)


def ran(tmp_path, *, given: dict[str, str] = GLIBC_ONLY, offered="always [madvise] never", before="", by=()):
    """Return the lines that a script prints which asks for an allocator."""
    enabled, script = tmp_path / "enabled", tmp_path / "script.py"
    enabled.write_text(offered)
    script.write_text(SCRIPT.format(before=before))
    ours = ("GLIBC_TUNABLES", "LD_PRELOAD", "MIMALLOC_PURGE_DELAY", "IMAGEN_JAX_RESTARTED")
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(malloc.__file__).parents[2])} | given
    command = [sys.executable, *(by or [str(script)]), str(enabled), "two words"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")


@needs_mimalloc
def test_mimalloc_allocates_and_is_left_out_of_what_others_get(tmp_path):
    assert ran(tmp_path, given={}) == ["run", "run", "None ['two words'] 0", "300000", "set()", ""]


@needs_mimalloc
def test_options_of_mimalloc_that_the_environment_has_stay():
    own = {"MIMALLOC_PURGE_DELAY": "0", "JAX_PLATFORMS": "cpu"}
    assert malloc._additions(own) == {"LD_PRELOAD": str(malloc.mimalloc()), "MIMALLOC_PURGE_DELAY": "0"}


@needs_mimalloc
def test_the_platform_is_not_named(monkeypatch):
    monkeypatch.setattr(malloc.util, "find_spec", lambda name: None)
    assert "LD_PRELOAD" in malloc._additions({})


@needs_mimalloc
def test_variables_that_somebody_takes_away_restart_nothing_twice(tmp_path):
    lines = ran(tmp_path, given={}, before="os.environ.pop('LD_PRELOAD', None)")
    assert lines[:3] == ["run", "run", "None ['two words'] 0"]


@needs_mimalloc
def test_a_library_that_lacks_another_is_not_preloaded(monkeypatch, tmp_path):
    broken = tmp_path / "libmimalloc.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(malloc, "mimalloc", lambda: broken)
    monkeypatch.setattr(malloc, "_has_huge_pages", lambda: False)
    assert malloc._additions({"JAX_PLATFORMS": "cpu"}) == {}


@needs_mimalloc
def test_accelerators_and_a_library_of_the_user_keep_the_allocator(monkeypatch):
    monkeypatch.setattr(malloc, "_has_huge_pages", lambda: True)
    huge = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert malloc._additions({"JAX_PLATFORMS": "cuda,cpu"}) == huge
    assert malloc._additions({"LD_PRELOAD": "/lib/libother.so"}) == huge
    assert malloc._additions({"LD_PRELOAD": "/lib/libjemalloc.so.2"}) == {}
    monkeypatch.setattr(malloc.util, "find_spec", lambda name: True if name == "jax_plugins" else None)
    assert malloc._additions({}) == huge


@pytest.mark.parametrize("place", ["a b", "a:b"])
def test_a_path_that_cannot_be_preloaded(monkeypatch, tmp_path, place):
    class File:
        name = "libmimalloc.so"
        locate = staticmethod(lambda: tmp_path / "link/libmimalloc.so")

    monkeypatch.setattr(metadata, "files", lambda name: [File])
    (tmp_path / "link").symlink_to(tmp_path / "plain")
    assert malloc.mimalloc() == tmp_path / "plain/libmimalloc.so"
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to(tmp_path / place)
    assert malloc.mimalloc() is None


def test_without_mimalloc(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    monkeypatch.setattr(malloc, "_has_huge_pages", lambda: False)
    assert malloc.mimalloc() is None
    assert malloc._additions({"JAX_PLATFORMS": "cpu"}) == {}


def test_others_keep_what_the_user_set():
    own = {"LD_PRELOAD": "/lib/libother.so", "MIMALLOC_PURGE_DELAY": "0", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}
    assert malloc.without(own) == own
    assert malloc.without(own | {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"}) == own
    assert malloc.without({"A": "b", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}) == {"A": "b"}


@needs_glibc
def test_a_program_starts_again_once_with_its_arguments(tmp_path):
    assert ran(tmp_path)[:4] == ["run", "run", "glibc.malloc.hugetlb=1 ['two words'] 0", "None"]
    with_options = ran(tmp_path, by=["-X", "utf8", str(tmp_path / "script.py")])
    assert with_options[:3] == ["run", "run", "glibc.malloc.hugetlb=1 ['two words'] 1"]
    assert ran(tmp_path, by=["script.py"])[:3] == ["run", "run", "glibc.malloc.hugetlb=1 ['two words'] 0"]


@needs_glibc
def test_other_options_of_the_library_stay(tmp_path):
    assert ran(tmp_path, given=GLIBC_ONLY | {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"})[2].startswith(
        "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1 "
    )


@pytest.mark.parametrize(
    ("case", "printed"),
    [
        ({"given": GLIBC_ONLY | {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}}, "glibc.malloc.hugetlb=0"),
        ({"offered": "[always] madvise never"}, "None"),
        ({"offered": "always madvise [never]"}, "None"),
        ({"given": {}, "before": "sys.modules['jax'] = sys"}, "None"),  # memory is taken already
        ({"given": {}, "by": ["-m", "script"]}, "None"),  # somebody else's program
        ({"given": {}, "before": "sys.argv.append('mine')"}, "None"),
    ],
)
def test_nothing_starts_again_otherwise(tmp_path, case, printed):
    lines = ran(tmp_path, **case)
    assert [line.split(" ")[0] for line in lines[:2]] == ["run", printed]
    assert lines[2] == "None"


def test_a_system_without_huge_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(malloc, "_ENABLED", tmp_path / "nothing")
    assert not malloc._has_huge_pages()
