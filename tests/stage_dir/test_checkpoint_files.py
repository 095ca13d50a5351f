"""Checkpoints that a run removes while they are read."""

import shutil

import pytest

from imagen_jax import load_stage
from imagen_jax.stage_dir import checkpoint, checkpoint_files
from tests.stage_dir.conftest import CONFIG, same, state_of

# What tensorstore's threads find closed, once the first array has failed (scripts do not print it).
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


# --- races --------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "while"])
def test_a_checkpoint_that_a_run_removes_is_not_damage(workdir, monkeypatch, when):
    """The newest that was listed is removed, file by file, and a newer one is there."""
    read = checkpoint_files.restore_item
    root = workdir / "base/checkpoints"
    newest = root / "10"

    def removed(folder, name, wanted):
        monkeypatch.setattr(checkpoint_files, "restore_item", read)
        with checkpoint.Checkpoints(workdir / "base", CONFIG) as checkpoints:
            checkpoints.save(state_of(15), {"next_index": 15})
        if when == "before":
            shutil.rmtree(newest)
        else:
            shutil.rmtree(newest / "ema_params/ocdbt.process_0")
        return read(folder, name, wanted)

    monkeypatch.setattr(checkpoint_files, "restore_item", removed)
    assert same(load_stage(workdir / "base").params, state_of(15).ema_params)


def test_a_wanted_step_that_is_removed_is_told_as_such(workdir, monkeypatch):
    def removed(folder, *_):
        shutil.rmtree(folder)
        raise FileNotFoundError(folder)

    monkeypatch.setattr(checkpoint_files, "restore_item", removed)
    with pytest.raises(ValueError, match=r"must hold the checkpoint of step 5; got steps \[10\]"):
        load_stage(workdir / "base", step=5)
