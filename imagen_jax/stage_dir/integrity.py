"""The record in each checkpoint, and the verification of what is read against it."""

import contextlib
from pathlib import Path
from typing import Any, NamedTuple

from imagen_jax.config import read_json
from imagen_jax.stage_dir import checksums
from imagen_jax.storage import files, locations

_ADVICE = "move the checkpoint away to continue from the one before"
_MAX_METADATA_BYTES = 2**28  # some MiB for thousands of arrays
_KEYS = {"step", "position", "arrays", "checksum"}


class ChangedError(ValueError):
    """A part of a checkpoint is not what was saved; the message is one line that names it."""


class Record(NamedTuple):
    """The data position, and the checksums of all arrays by item and name (None: written before there were any)."""

    position: dict[str, Any]
    arrays: dict[str, int] | None


def make_record(step: int, position: dict[str, Any], tree: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON value saved beside `tree`, a checkpoint's arrays by item. Every process of a run calls it."""
    content = {"step": step, "position": position, "arrays": checksums.of_arrays(tree)}
    return content | {"checksum": checksums.of_json(content)}


def read_record(file: Path, step: int) -> Record:
    """Return the record that `make_record` or an earlier version made for the checkpoint of `step`.

    Raises:
      ChangedError: it has changed, or belongs to another checkpoint.
    """
    content = read_json(file)
    if isinstance(content, dict) and set(content) <= {"next_index", "data_set"}:
        record = Record(content, None)
    else:
        is_whole = isinstance(content, dict) and set(content) == _KEYS
        kept = {key: value for key, value in content.items() if key != "checksum"} if is_whole else None
        if not is_whole or checksums.of_json(kept) != content["checksum"]:
            raise ChangedError(f"{file} must be as it was saved; got another content: {_ADVICE}.")
        if content["step"] != step:
            raise ChangedError(f"{file} must be of step {step}; got step {content['step']}: {_ADVICE}.")
        record = Record(content["position"], content["arrays"])
    if record.position.get("next_index") != step:  # one batch a step
        raise ChangedError(
            f"{file} must hold the position of step {step} in the data; got {record.position}: {_ADVICE}."
        )
    return record


def verify(folder: Path, tree: dict[str, Any], record: Record) -> None:
    """Compare restored arrays, by item, of the checkpoint in `folder` with its record. Every process of a run calls it.

    Raises:
      ChangedError: names the arrays that have changed and their files.
    """
    if record.arrays is None:
        return
    found = checksums.of_arrays(tree)
    expected = {name: value for name, value in record.arrays.items() if name.partition("/")[0] in tree}
    changed = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
    if changed:
        shown = ", ".join(f"{name} (in {_where(folder, name)})" for name in changed[:3])
        more = f" and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ChangedError(
            f"checkpoint {folder} must hold what was saved; got other values in {shown}{more}: {_ADVICE}."
        )


def check_files(folder: Path) -> None:
    """Raise an OSError for pipes and devices, whose reading may block, and for metadata that would fill the memory."""
    if locations.is_remote(folder):
        return
    for path in folder.rglob("*"):
        if not path.is_dir():
            files.check_regular(path)
            if path.parent.name != "d" and path.stat().st_size > _MAX_METADATA_BYTES:  # d: where the arrays are
                raise OSError(
                    f"{path} must have at most {_MAX_METADATA_BYTES} bytes; got {path.stat().st_size}: {_ADVICE}."
                )


def _where(folder: Path, name: str) -> str:
    """Return the files that hold an array, below the checkpoint's folder; the item if they cannot be found."""
    item, _, array = name.partition("/")
    with contextlib.suppress(Exception):  # the index may be what is damaged
        import tensorstore as ts

        url = f"{folder / item}/"
        store = ts.KvStore.open(
            locations.kvstore(url) if locations.is_remote(folder) else {"driver": "file", "path": url}
        ).result()
        key = array.replace("/", ".") + "/"
        version = ts.ocdbt.dump(store).result()["versions"][-1]
        found = set()
        for entry, value in _entries(ts, store, version["root"]["location"], ""):
            if entry.startswith(key) and value is not None:  # otherwise the value is in the index itself
                _, directory, file = value.split(":")[:3]
                found.add(f"{item}/{directory}{file}")
        if found:
            return ", ".join(sorted(found))
    return item


def _entries(ts: Any, store: Any, node: str, prefix: str):
    """Yield (key, location of its value) for all keys below a node of an OCDBT index."""
    found = ts.ocdbt.dump(store, node=node).result()
    for entry in found["entries"]:
        if found["height"]:
            below = prefix + entry["subtree_common_prefix"].decode()
            yield from _entries(ts, store, entry["location"], below)
        else:
            yield prefix + entry["key"].decode(), entry.get("indirect_value")
