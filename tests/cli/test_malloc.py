"""Programs are started again with huge pages where that changes something, and only programs of ours."""

import os
import subprocess
import sys

import pytest

from imagen_jax.cli import huge_pages

SCRIPT = """
import os, sys
from imagen_jax.cli import huge_pages
from pathlib import Path
huge_pages._ENABLED = Path(sys.argv[1])
print("run", flush=True)
{before}
huge_pages.restart()
huge_pages.restart()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[2:], sys.flags.utf8_mode)
"""
needs_glibc = pytest.mark.skipif(
    not hasattr(os, "confstr") or "CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="another C library"
)


def ran(tmp_path, *, given: str | None = None, offered="always [madvise] never", before="", by=()) -> list[str]:
    """Return the lines that a script prints which asks for huge pages."""
    enabled, script = tmp_path / "enabled", tmp_path / "script.py"
    enabled.write_text(offered)
    script.write_text(SCRIPT.format(before=before))
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    environment |= {} if given is None else {"GLIBC_TUNABLES": given}
    command = [sys.executable, *(by or [str(script)]), str(enabled), "two words"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    return done.stdout.split("\n")


@needs_glibc
def test_a_program_starts_again_once_with_its_arguments(tmp_path):
    assert ran(tmp_path)[:3] == ["run", "run", "glibc.malloc.hugetlb=1 ['two words'] 0"]
    with_options = ran(tmp_path, by=["-X", "utf8", str(tmp_path / "script.py")])
    assert with_options[:3] == ["run", "run", "glibc.malloc.hugetlb=1 ['two words'] 1"]
    assert ran(tmp_path, by=["script.py"])[:3] == ["run", "run", "glibc.malloc.hugetlb=1 ['two words'] 0"]


@needs_glibc
def test_other_options_of_the_library_stay(tmp_path):
    assert ran(tmp_path, given="glibc.malloc.arena_max=2")[2].startswith(
        "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1 "
    )


@pytest.mark.parametrize(
    ("case", "printed"),
    [
        ({"given": "glibc.malloc.hugetlb=0"}, "glibc.malloc.hugetlb=0"),  # the user has chosen
        ({"offered": "[always] madvise never"}, "None"),
        ({"offered": "always madvise [never]"}, "None"),
        ({"before": "sys.modules['jax'] = sys"}, "None"),  # memory is taken already
        ({"by": ["-m", "script"]}, "None"),  # somebody else's program
        ({"before": "sys.argv.append('mine')"}, "None"),
    ],
)
def test_nothing_starts_again_otherwise(tmp_path, case, printed):
    assert [line.split(" ")[0] for line in ran(tmp_path, **case)] == ["run", printed, ""]


def test_a_system_without_huge_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(huge_pages, "_ENABLED", tmp_path / "nothing")
    assert not huge_pages._on_request()
