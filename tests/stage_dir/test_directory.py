"""A directory that was moved away is not made anew."""

import shutil
from pathlib import Path

import pytest

from imagen_jax.stage_dir import checkpoint
from imagen_jax.stage_dir import directory as stage_dir
from tests.stage_dir.conftest import CONFIG, state_of

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
