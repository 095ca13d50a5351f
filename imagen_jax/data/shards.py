"""The files of a TFDS data set: ArrayRecord shards and their metadata.

All data sets of this project are written through this module. TFDS encodes the records and the metadata; ArrayRecord
writes the files, so that several processes can write shards of one data set. TensorFlow is not needed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from imagen_jax.checks import require
from imagen_jax.storage import files

_OPTIONS = "group_size:1"  # makes each record readable by itself
_READ = 64  # records read from a file at once
_READ_BYTES = 2**26  # of those, if they are as large as the previous ones


@dataclasses.dataclass(frozen=True)
class Shard:
    """A finished file, the number of its records, and their bytes (the file has a few more)."""

    path: Path
    records: int
    bytes: int


def check_names(name: str, splits: Iterable[str]) -> None:
    """Raise ValueError unless TFDS can use the names in file names and find splits by them."""
    rule = "be lower-case letters, digits and underscores, beginning with a letter"
    require(bool(re.fullmatch(r"[a-z][a-z0-9_]*", name)), "The name of a data set", rule, name)
    rule = (
        "be letters, digits, underscores and hyphens, beginning with a letter, and not 'all', which means every split "
        "to TFDS"
    )
    for split in splits:
        is_name = re.fullmatch(r"[A-Za-z]\w*(-\w+)*", split, re.ASCII) and split != "all"
        require(bool(is_name), "Names of splits", rule, split)


def file_name(name: str, split: str, index: int) -> str:
    """Return the name of a shard, by the template that `write_metadata` stores."""
    return f"{name}-{split}.array_record-{index:05d}"


def encode(example: dict) -> bytes:
    """Encode a record {"image": bytes, "caption": str[, "claims": str]} for a shard."""
    features, serializer = _serializer(frozenset(example))
    record = serializer.get_tf_example(features.encode_example(example))
    return record.SerializeToString(deterministic=True)  # otherwise maps have no fixed order


@functools.cache
def _serializer(keys: frozenset[str]):
    from tensorflow_datasets.core import example_serializer

    features = _features(keys)
    return features, example_serializer.ExampleSerializer(features.get_serialized_info())


def _features(keys: Iterable[str]):
    import tensorflow_datasets as tfds

    texts = {key: tfds.features.Text() for key in ("caption", "claims") if key in keys}
    return tfds.features.FeaturesDict({"image": tfds.features.Image(shape=(None, None, 3)), **texts})


class SplitWriter:
    """Writes records to files of limited size; `path(i)` names the i-th.

    Raises:
      OSError: from `add` and `close`; the disk is full, or a similar failure.
    """

    def __init__(self, path: Callable[[int], Path], max_records: int = 2**14, max_bytes: int = 2**30):
        self.shards: list[Shard] = []  # the finished ones
        self._path, self._max_records, self._max_bytes = path, max_records, max_bytes
        self._writer, self._records, self._bytes = None, 0, 0

    def add(self, record: bytes) -> None:
        from array_record.python import array_record_module

        path = self._path(len(self.shards))
        with _as_os_error(path):
            if self._writer is None:
                self._writer = array_record_module.ArrayRecordWriter(str(path), _OPTIONS)
            self._writer.write(record)
        self._records += 1
        self._bytes += len(record)
        if self._records >= self._max_records or self._bytes >= self._max_bytes:
            self.close()

    def close(self) -> None:
        """Finish the current file and sync it to the disk; further records go to the next."""
        if self._writer is None:
            return
        path = self._path(len(self.shards))
        with _as_os_error(path):
            writer, self._writer = self._writer, None
            writer.close()
        files.sync(path)
        self.shards.append(Shard(path, self._records, self._bytes))
        self._records, self._bytes = 0, 0


@contextlib.contextmanager
def _as_os_error(path: Path) -> Iterator[None]:
    """Raise OSError where ArrayRecord raises RuntimeError for failures of the disk."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def read_sound(path: Path) -> Iterator[bytes | RuntimeError]:
    """Yield the records of a shard in order; instead of a damaged one, the error.

    Raises:
      RuntimeError: the whole file cannot be read: its index of records is damaged.
      OSError: the file is missing or inaccessible.
    """
    from array_record.python import array_record_module

    path.open("rb").close()  # raises OSError, where ArrayRecord raises RuntimeError as for damage
    reader = array_record_module.ArrayRecordReader(str(path))
    try:
        total, start, num = reader.num_records(), 0, 1
        while start < total:
            end = min(start + num, total)
            records = _read(reader, start, end)
            largest = max((len(record) for record in records if isinstance(record, bytes)), default=0)
            yield from records
            start, num = end, max(1, min(2 * num, _READ, _READ_BYTES // max(largest, 1)))
    finally:
        reader.close()


def _read(reader, start: int, end: int) -> list[bytes | RuntimeError]:
    try:
        return reader.read(start, end)
    except RuntimeError as error:  # one damaged record fails them all
        return [error] if end == start + 1 else [_read(reader, i, i + 1)[0] for i in range(start, end)]


def write_metadata(
    directory: Path, name: str, description: str, keys: Iterable[str], shards: dict[str, list[Shard]]
) -> None:
    """Write dataset_info.json and features.json for the shards of each split, in order."""
    from tensorflow_datasets import core

    identity = core.DatasetIdentity(name=name, version="1.0.0", data_dir=str(directory), module_name="")
    info = core.DatasetInfo(builder=identity, features=_features(keys), description=description)
    info.set_file_format("array_record")
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_INDEX}"
    splits = [
        core.SplitInfo(
            name=split,
            shard_lengths=[shard.records for shard in written],
            num_bytes=sum(shard.bytes for shard in written),
            filename_template=core.ShardedFileTemplate(
                dataset_name=name,
                data_dir=str(directory),
                split=split,
                filetype_suffix="array_record",
                template=template,
            ),
        )
        for split, written in shards.items()
    ]
    info.set_splits(core.SplitDict(splits))
    info.write_to_directory(str(directory))
