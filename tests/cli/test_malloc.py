"""Programs are started again with another allocator where that changes something, and only programs of ours."""

import os
import subprocess
import sys
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
print("libmimalloc" in Path("/proc/self/maps").read_text() if sys.platform == "linux" else False)
print(malloc.without(os.environ).keys() & {{"LD_PRELOAD", "GLIBC_TUNABLES", *malloc._MIMALLOC}})
"""
GLIBC_ONLY = {"LD_PRELOAD": ""}
needs_glibc = pytest.mark.skipif(
    not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library"
)
needs_mimalloc = pytest.mark.skipif(malloc.mimalloc() is None, reason="mimalloc is not installed")


def ran(tmp_path, *, given: dict[str, str] = GLIBC_ONLY, offered="always [madvise] never", before="", by=()):
    """Return the lines that a script prints which asks for an allocator."""
    enabled, script = tmp_path / "enabled", tmp_path / "script.py"
    enabled.write_text(offered)
    script.write_text(SCRIPT.format(before=before))
    ours = ("GLIBC_TUNABLES", "LD_PRELOAD", *malloc._MIMALLOC)
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    environment |= {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(malloc.__file__).parents[2])} | given
    command = [sys.executable, *(by or [str(script)]), str(enabled), "two words"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")


@needs_mimalloc
def test_mimalloc_allocates_and_is_left_out_of_what_others_get(tmp_path):
    assert ran(tmp_path, given={}) == ["run", "run", "None ['two words'] 0", "True", "set()", ""]


@needs_mimalloc
def test_options_of_mimalloc_that_the_environment_has_stay():
    own = {"MIMALLOC_PURGE_DELAY": "0", "JAX_PLATFORMS": "cpu"}
    assert malloc._additions(own).keys() == {"LD_PRELOAD", "MIMALLOC_ALLOW_LARGE_OS_PAGES"}


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
def test_a_path_that_cannot_be_preloaded(monkeypatch, place):
    class File:
        name = "libmimalloc.so"
        locate = staticmethod(lambda: Path(f"/{place}/libmimalloc.so"))

    monkeypatch.setattr(malloc.metadata, "files", lambda name: [File])
    assert malloc.mimalloc() is None


def test_without_mimalloc(monkeypatch):
    def missing(name):
        raise malloc.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(malloc.metadata, "files", missing)
    monkeypatch.setattr(malloc, "_has_huge_pages", lambda: False)
    assert malloc.mimalloc() is None
    assert malloc._additions({"JAX_PLATFORMS": "cpu"}) == {}
    assert malloc.without({"LD_PRELOAD": "/lib/libother.so", "A": "b"}) == {"LD_PRELOAD": "/lib/libother.so", "A": "b"}


@needs_glibc
def test_a_program_starts_again_once_with_its_arguments(tmp_path):
    assert ran(tmp_path)[:4] == ["run", "run", "glibc.malloc.hugetlb=1 ['two words'] 0", "False"]
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
    assert lines[2] == "False"


def test_a_system_without_huge_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(malloc, "_ENABLED", tmp_path / "nothing")
    assert not malloc._has_huge_pages()
