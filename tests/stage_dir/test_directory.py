"""A directory that was moved away is not made anew."""

import shutil
from pathlib import Path

import pytest

from imagen_jax.stage_dir import checkpoint
from imagen_jax.stage_dir import directory as stage_dir
from tests.stage_dir.conftest import CONFIG, shapes_of, state_of

# What tensorstore's threads find closed, once the first array has failed (scripts do not print it).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
MOVES = {
    "renamed": lambda d: d.rename(d.with_name("elsewhere")),
    "workdir renamed": lambda d: d.parent.rename(d.parent.with_name("elsewhere")),
    "removed": shutil.rmtree,
    "replaced": lambda d: (d.rename(d.with_name("old")), shutil.copytree(d.with_name("old"), d)),
    "without its configuration": lambda d: (d / "config.json").unlink(),
    "a file in its place": lambda d: (d.rename(d.with_name("old")), d.write_text("")),
}


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_directory_that_was_moved_is_not_made_anew(workdir, move):
    directory = workdir / "base"
    with (
        pytest.raises(OSError, match="must stay where it is while a run trains in it"),
        stage_dir.lock_directory(directory) as hold,
        checkpoint.Checkpoints(directory, CONFIG, hold) as checkpoints,
    ):
        move(directory)
        before = sorted(map(str, Path(workdir).rglob("*")))
        checkpoints.save(state_of(15), {"next_index": 15})
    assert sorted(map(str, Path(workdir).rglob("*"))) == before


def test_an_exported_cascade_is_no_stage():
    place = Path(stage_dir.__file__).parents[1] / "pretrained" / "shapes"
    with pytest.raises(ValueError, match="a stage's configuration; got that of an exported cascade: name .*shapes its"):
        stage_dir.read_config(place)


def test_the_space_that_is_asked_for_holds_a_checkpoint(workdir, monkeypatch):
    """Also of a small network, of whose checkpoint much describes the arrays."""
    files = (workdir / "base" / "checkpoints" / "10").rglob("*")
    written = sum(file.stat().st_size for file in files if file.is_file())
    usage = shutil.disk_usage(workdir)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=written - 1))
    with pytest.raises(ValueError, match="must have room for a checkpoint of"):
        stage_dir.check_space(workdir, shapes_of(state_of(10)))
