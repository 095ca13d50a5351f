"""The embeddings files of a cache: ArrayRecord, a record per caption, and where each of them is."""

import contextlib
import os
import secrets
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from imagen_jax.storage import files
from imagen_jax.text import model_files

PATTERN = f"embeddings-{'[0-9a-f]' * 8}.array_record"
UNFINISHED = ".unfinished"
KEY = np.dtype("S16")  # of a caption: the first 16 bytes of its sha256
MISSING = np.uint64(2**64 - 1)  # the location of an embedding that is not in the cache
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
}
_MAX_CAPTIONS, _MAX_BYTES = 65_536, 4 << 30  # in one file
_MAX_SECONDS = 60.0
_REPAIR = (
    "run imagen-jax embed with the same options, which embeds again what is damaged, or call "
    "imagen_jax.text.cache.build with repair=True"
)


def as_bytes(keys: np.ndarray) -> list[bytes]:
    """Return keys as `bytes` of their full length; `keys.tolist()` would strip zeros at their ends."""
    content = keys.tobytes()
    return [content[i : i + KEY.itemsize] for i in range(0, len(content), KEY.itemsize)]


class DamagedFileError(ValueError):
    """An embeddings file of which nothing can be read."""


# --- tokens -------------------------------------------------------------------------------------


def token_type(dtype: str, width: int) -> np.dtype:
    """Return the type of one stored token: `width` numbers, in int8 with a float32 scale before them."""
    if dtype == "int8":
        return np.dtype([("scale", "<f4"), ("values", np.int8, (width,))])
    return np.dtype((DTYPES[dtype], (width,)))


def to_bytes(embedding: np.ndarray, dtype: str, caption: str) -> bytes:
    """Return embeddings [L, D] as they are stored; raise ValueError if a value is not finite in `dtype`."""
    largest = np.abs(embedding.astype(np.float32)).max(axis=-1)  # [L]
    with np.errstate(over="ignore", invalid="ignore"):  # Reported below, with the caption and what to do.
        if dtype == "int8":
            stored = np.empty(len(embedding), token_type(dtype, embedding.shape[-1]))
            stored["scale"] = scale = np.maximum(largest / np.float32(127), np.float32(1e-30))
            stored["values"] = np.rint(np.nan_to_num(embedding.astype(np.float32) / scale[:, None]))
            is_finite = np.isfinite(largest).all()
        else:
            stored = embedding.astype(DTYPES[dtype])
            is_finite = np.isfinite(stored).all()
    if not is_finite:
        fix = "delete the cache and build it with dtype (--store) 'bfloat16' or 'float32'"
        if not np.isfinite(largest).all():
            fix = (
                "the encoder's weights are damaged, or its dtype is too small: get them again, or try float32"
            )
        raise ValueError(
            f"embeddings stored as {dtype} must be finite in it; got values up to {largest.max()} for {caption!r}: "
            f"{fix}."
        )
    return stored.tobytes()


def from_bytes(content: bytes, token: np.dtype) -> np.ndarray:
    """Return what `to_bytes` stored as float32 [L, D]."""
    tokens = np.frombuffer(content, token.base).reshape(-1, *token.shape)
    if token.names:
        return tokens["values"].astype(np.float32) * tokens["scale"][:, None]
    return np.asarray(tokens, np.float32)


# --- ArrayRecord files --------------------------------------------------------------------------


class Writer:
    """Write embeddings to ArrayRecord files, a record per caption; the last record of a file holds all their keys.

    A file grows under a temporary name and gets its own when it is complete: when it has 65,536 captions or 4 GiB, when
    a minute has passed (or a twentieth of the time so far, if that is longer), and at the end of the context, however
    that is left.

    Args:
      root: directory of the files.
      prefix: of the temporary names.

    Raises:
      OSError: from `add` and at the end: the disk is full, or the like. The unfinished file is removed.
    """

    def __init__(self, root: Path, prefix: str):
        self._root, self._prefix = root, prefix
        self._writer, self._path = None, None
        self._keys, self._bytes = [], 0
        self._begin = self._opened = time.monotonic()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_) -> None:
        self._close()

    def add(self, key: bytes, content: bytes) -> None:
        """Write one embedding."""
        from array_record.python import array_record_module

        assert len(key) == KEY.itemsize, key
        with self._as_os_error():
            if self._writer is None:
                self._path = self._root / f"{self._prefix}-{uuid.uuid4().hex}{UNFINISHED}"
                self._writer = array_record_module.ArrayRecordWriter(
                    str(self._path), "group_size:1,uncompressed"
                )
                self._keys, self._bytes, self._opened = [], 0, time.monotonic()
            self._writer.write(content)
        self._keys.append(key)
        self._bytes += len(content)
        now = time.monotonic()
        is_due = now - self._opened > max(_MAX_SECONDS, (now - self._begin) / 20)
        if is_due or len(self._keys) >= _MAX_CAPTIONS or self._bytes >= _MAX_BYTES:
            self._close()

    def _close(self) -> None:
        if self._writer is None:
            return
        with self._as_os_error():
            writer, self._writer = self._writer, None
            writer.write(b"".join(self._keys))
            writer.close()
            files.sync(self._path)
            final = self._path
            while final.exists():
                final = RecordFiles(self._root).path(secrets.randbits(32))
            os.rename(self._path, final)
            files.sync_directory(self._root)

    @contextlib.contextmanager
    def _as_os_error(self) -> Iterator[None]:
        """ArrayRecord raises RuntimeError for what the disk refuses."""
        try:
            yield
        except RuntimeError as error:
            self._writer = None
            self._path.unlink(missing_ok=True)
            reason = model_files.first_line(error)
            raise OSError(
                f"{self._root} cannot be written: {reason}: free some space, then run it again."
            ) from error


class RecordFiles:
    """Random access to all embeddings of a directory, from any thread; cheap to pickle to worker processes.

    A location is a number of 64 bits: that in the name of a file, then the record in it (32 bits each).
    """

    def __init__(self, root: Path):
        self._root, self._lock, self._readers = root, threading.Lock(), {}

    def __reduce__(self):
        return RecordFiles, (self._root,)

    def numbers(self) -> list[int]:
        """Return the numbers in the names of the files."""
        return sorted(int(path.stem.removeprefix("embeddings-"), 16) for path in self._root.glob(PATTERN))

    def path(self, number: int) -> Path:
        """Return the path of the file with a number in its name."""
        return self._root / f"embeddings-{number:08x}.array_record"

    def read(self, locations: np.ndarray) -> list[bytes | None]:
        """Return the records at uint64 [N] locations, None for those that are damaged."""
        numbers, records = locations >> np.uint64(32), locations & np.uint64(2**32 - 1)
        found: list[bytes | None] = [None] * len(locations)
        for number in np.unique(numbers).tolist():
            places = np.flatnonzero(numbers == number).tolist()
            for place, content in zip(places, self._read(number, records[places].tolist()), strict=True):
                found[place] = content
        return found

    def embeddings(self, locations: np.ndarray, token: np.dtype) -> list[np.ndarray]:
        """Return the embeddings at N locations, float32 [L, D] each; raise ValueError if one is damaged."""
        contents = self.read(locations)
        if None in contents:
            location = int(locations[contents.index(None)])
            path = self.path(location >> 32)
            raise ValueError(
                f"record {location & 2**32 - 1} of {path} must match its checksum; it is damaged: {_REPAIR}."
            )
        return [from_bytes(content, token) for content in contents]

    def keys(self, number: int) -> np.ndarray:
        """Return the keys of the captions of one file, [N]; raise DamagedFileError if they cannot be read.

        As Python's bytes they would lose the zeros at their ends: see `as_bytes`.
        """
        try:
            num = self._reader(number).num_records()
            (content,) = self._read(number, [num - 1]) if num else [None]
        except RuntimeError:
            content = None
        if content is None or len(content) != (num - 1) * KEY.itemsize:
            raise DamagedFileError(
                f"{self.path(number)} must match its checksums; it is cut off or damaged: {_REPAIR}."
            )
        return np.frombuffer(content, KEY)

    def _read(self, number: int, records: list[int]) -> list[bytes | None]:
        try:
            return self._reader(number).read(records)
        except RuntimeError:  # one damaged record fails all
            return [None] if len(records) == 1 else [self._read(number, [record])[0] for record in records]

    def _reader(self, number: int) -> Any:
        with self._lock:
            if number not in self._readers:
                from array_record.python import array_record_module

                options = "readahead_buffer_size:0,max_parallelism:0"
                self._readers[number] = array_record_module.ArrayRecordReader(
                    str(self.path(number)), options, file_reader_buffer_size=1 << 15
                )
            return self._readers[number]


class Index:
    """Where the embeddings are, by the keys of their captions; holds 24 bytes per caption.

    Args:
      root: directory of the files.
      skips_damaged: leave out files that cannot be read, instead of a DamagedFileError.
    """

    def __init__(self, root: Path, skips_damaged: bool = False):
        records = RecordFiles(root)
        keys, locations = [np.empty(0, KEY)], [np.empty(0, np.uint64)]
        for number in records.numbers():
            try:
                keys.append(records.keys(number))
            except DamagedFileError:
                if not skips_damaged:
                    raise
            else:
                locations.append(np.arange(len(keys[-1]), dtype=np.uint64) + np.uint64(number << 32))
        keys = np.concatenate(keys)
        order = np.argsort(keys, kind="stable")
        self._keys, self._locations = keys[order], np.concatenate(locations)[order]

    def __len__(self) -> int:
        """Return how many different captions there are."""
        return len(np.unique(self._keys))

    def locate(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return the locations of the embeddings of N captions, uint64 [N]: MISSING where there is none."""
        if not len(self._keys):
            return np.full(len(keys), MISSING)
        keys = np.array(keys, KEY)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return np.where(self._keys[places] == keys, self._locations[places], MISSING)
