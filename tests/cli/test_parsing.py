"""Command lines become dataclasses, and places of other kinds are refused."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from imagen_jax.cli import parsing
from imagen_jax.storage import locations


@pytest.fixture
def libraries(monkeypatch):
    """As if both libraries were installed."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name in ("s3fs", "gcsfs") or found(name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    workdir: locations.Location
    output: locations.Location | None = None
    data: Path | None = None
    image: tuple[Path, ...] = ()


COMMANDS = [
    (["--workdir", "hdfs://n/run"], "--workdir must be a path, or a URL of gs:// or s3://"),
    (["--workdir", "gs:/b/run"], "--workdir must have two slashes after gs:"),
    (["--workdir", "run", "--output", "s3:b"], "--output must have two slashes after s3:"),
    (["--workdir", "run", "--data", "gs://b/data"], "--data must be a path of this machine; got 'gs:/b/data'"),
    (["--workdir", "run", "--data", "https://h/data"], "--data must be a path of this machine"),
    (["--workdir", "run", "--image", "a.png", "s3://b/b.png"], "--image must be a path of this machine"),
]


@pytest.mark.parametrize(("args", "line"), COMMANDS)
def test_options_that_are_places_are_checked(libraries, args, line):
    with pytest.raises(ValueError) as error:
        parsing.parse(Options, "", args)
    assert str(error.value).startswith(line)


def test_options_become_paths(libraries):
    parsed = parsing.parse(Options, "", ["--workdir", "s3://bucket/run", "--data", "d"])
    assert locations.is_remote(parsed.workdir) and parsed.output is None and parsed.data == Path("d")
    assert parsing.parse(Options, "", ["--workdir", "run"]).workdir == Path("run")
