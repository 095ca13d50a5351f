"""Checkpoint folders as Orbax writes and reads them. The only file that imports orbax, but for the barrier of
`processes`.

A checkpoint is the folder checkpoints/<step> of a stage's directory, with a folder for each item. It appears by one
atomic rename once all items are written; in a bucket of S3, which cannot rename, its last file completes it.
"""

from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp

from imagen_jax.checks import Verbatim, require
from imagen_jax.storage import locations

_JSON_FILE = "metadata"  # Orbax's name of the file in the folder of an item that is JSON
_LAST_FILE = "commit_success.txt"  # Orbax's name of the file that completes a checkpoint in a bucket


def make_manager(directory: Path, keep: int) -> ocp.CheckpointManager:
    """Return Orbax's manager of the newest `keep` checkpoints in a stage's directory.

    It removes what an interrupted run left half-written.
    """
    latest = ocp.checkpoint_managers.LatestN(keep)
    options = ocp.CheckpointManagerOptions(preservation_policy=latest, cleanup_tmp_directories=True)
    if str(directory).startswith("s3://"):
        _add_s3_to_orbax()
        options.atomicity_options = ocp.options.AtomicityOptions(mode=ocp.options.AtomicityMode.COMMIT_FILE)
    return ocp.CheckpointManager(directory / "checkpoints", options=options)


def save_arguments(arrays: dict[str, Any], texts: dict[str, Any]) -> ocp.args.Composite:
    """Return the argument with which the manager saves trees of arrays and JSON values, each by the item's name."""
    return ocp.args.Composite(
        **{name: ocp.args.StandardSave(tree) for name, tree in arrays.items()},
        **{name: ocp.args.JsonSave(value) for name, value in texts.items()},
    )


def restore_item(folder: Path, name: str, wanted: Any) -> Any:
    """Return the arrays of an item, each with the shape and sharding in the tree `wanted`.

    Not by the manager: with it the processes wait for each other, for ever if one cannot read.
    """
    if str(folder).startswith("s3://"):
        _add_s3_to_orbax()
    return ocp.StandardCheckpointHandler().restore(folder / name, args=ocp.args.StandardRestore(wanted))


def _add_s3_to_orbax() -> None:
    """Have Orbax describe s3:// paths to TensorStore, which can read and write them.

    Orbax 0.12 has no option for it: it builds the description for gs:// and local paths alone, in these functions.
    """
    from orbax.checkpoint._src.path import gcs_utils
    from orbax.checkpoint._src.serialization import tensorstore_utils

    if getattr(tensorstore_utils, "_imagen_jax", False):
        return
    normalize, kvstore = tensorstore_utils._normalize_path, gcs_utils.get_kvstore_for_gcs
    tensorstore_utils._use_gcs_driver = lambda directory: directory.startswith(("gs://", "s3://"))
    tensorstore_utils._normalize_path = lambda path: normalize(path).replace("s3:/", "s3://")
    gcs_utils.get_kvstore_for_gcs = lambda path: (
        locations.kvstore(path) if path.startswith("s3://") else kvstore(path)
    )
    tensorstore_utils._imagen_jax = True


def folder_of(directory: Path, step: int) -> Path:
    """Return the folder of a checkpoint in a stage's directory."""
    return directory / "checkpoints" / str(step)


def json_file(folder: Path, name: str) -> Path:
    """Return the file of an item that is JSON."""
    return folder / name / _JSON_FILE


def list_steps(directory: Path) -> list[int]:
    """Return the steps of the complete checkpoints in a stage's directory, in ascending order."""
    try:
        folders = [path for path in (directory / "checkpoints").iterdir() if path.name.isdigit()]
    except FileNotFoundError:
        return []
    if locations.is_remote(directory):
        folders = [path for path in folders if (path / _LAST_FILE).exists()]
    return sorted(int(path.name) for path in folders)


def check_continuable(directory: Path) -> None:
    """Check that the checkpoints in a stage's directory, if any, have what training continues from.

    Raises:
      ValueError: all of them have averaged parameters alone, as `save_stage` writes them.
    """
    folders = [folder_of(directory, step) for step in list_steps(directory)]
    is_whole = not folders or any((folder / "state").exists() for folder in folders)
    rule = "hold checkpoints with a state of the optimiser, to continue from"
    got = Verbatim(f"{directory}, which has averaged parameters alone")
    require(is_whole, "--workdir", rule, got, f"give another --workdir, and --init-from {directory}")


def move(folder: Path, target: Path) -> None:
    """Move a checkpoint to a folder that does not exist. In a bucket its files are copied, then removed."""
    if not locations.is_remote(folder):
        folder.rename(target)
        return
    from fsspec.core import url_to_fs

    fs, source = url_to_fs(str(folder))
    target = url_to_fs(str(target))[1]
    names = sorted(fs.find(source), key=lambda name: not name.endswith(f"/{_LAST_FILE}"))
    for name in names:
        fs.cp_file(name, target + name.removeprefix(source))
    for name in names:  # the file that completes it first, so that no half of it counts as a checkpoint
        fs.rm_file(name)
