"""Which embedding belongs to which record of a data set, stored so that training neither cleans nor hashes captions.

For each record file of a data set there is one file rows-NAME.npz in the cache. It holds the locations of the
embeddings of all its records, and the size and the time of the record file: when those have changed, it is made again.
"""

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from imagen_jax.data.sources import Source
from imagen_jax.storage import files
from imagen_jax.text import cache_files
from imagen_jax.text.cache_files import MISSING, RecordFiles


def key_of(caption: str) -> bytes:
    """Return the key under which the embedding of a (cleaned) caption is stored."""
    # surrogatepass: half a character is no caption, but looking for one must not raise UnicodeEncodeError.
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()[: cache_files.KEY.itemsize]


class RowEmbeddings:
    """The embeddings of the records of a data set: `rows(numbers)` is a list of [its tokens, D] float32.

    Safe to call from many threads, and picklable for worker processes; holds 8 bytes per record. `locations` uint64
    [num records] are MISSING for those whose caption cannot be read.
    """

    def __init__(self, records: RecordFiles, token: np.dtype, locations: np.ndarray, name: str):
        self._records, self._token, self._locations, self._name = records, token, locations, name

    def __call__(self, numbers: Sequence[int]) -> list[np.ndarray]:
        """Return the embeddings of some records; raise ValueError if one is damaged or has none."""
        locations = self._locations[np.asarray(numbers, np.int64)]
        if MISSING in locations:
            number = numbers[int(np.argmax(locations == MISSING))]
            raise ValueError(
                f"record {number} of {self._name} must have an embedding; its caption could not be read "
                "when the embeddings were made: run imagen-jax embed with the same options."
            )
        return self._records.embeddings(locations, self._token)


def load(root: Path, source: Source) -> np.ndarray:
    """Return the locations of the embeddings of a source's N records, uint64 [N]: MISSING where they are not stored."""
    parts = []
    for path, first, count in source.files:
        part = _read(_file(root, path), _version(path, source))[first:][:count]
        parts.append(np.pad(part, (0, count - len(part)), constant_values=MISSING))
    found = np.concatenate(parts) if parts else np.full(len(source), MISSING)
    is_present = np.isin(found >> np.uint64(32), np.array(RecordFiles(root).numbers(), np.uint64))
    return np.where(is_present, found, MISSING)


def save(root: Path, source: Source, locations: np.ndarray) -> None:
    """Store the locations [N] of a source's embeddings, for `load`; those of other records of its files are kept."""
    for path, first, count in source.files:
        file, version = _file(root, path), _version(path, source)
        before = _read(file, version)
        whole = np.pad(before, (0, max(0, first + count - len(before))), constant_values=MISSING)
        whole[first : first + count], locations = locations[:count], locations[count:]
        if not np.array_equal(before, whole):
            with files.replacing(file) as opened:
                np.savez(opened, version=version, locations=whole)


def _read(file: Path, version: str) -> np.ndarray:
    """The locations in a file; none if it is missing, damaged or outdated."""
    try:
        with np.load(file, allow_pickle=False) as content:  # its checksums are verified
            if str(content["version"]) == version:
                return content["locations"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass
    return np.empty(0, np.uint64)


def _file(root: Path, path: Path) -> Path:
    return root / f"rows-{path.name}.npz"


def _version(path: Path, source: Source) -> str:
    """What changes when the captions in a record file do."""
    status = os.stat(path)
    return f"{status.st_size} {status.st_mtime_ns} {source.caption_key}"
