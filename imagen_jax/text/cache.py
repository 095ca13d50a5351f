"""The embeddings of all captions of a data set, computed once and read from disk.

Layout, with one sub-directory per encoder so that embeddings never mix:

    directory/<encoder.fingerprint>/
      meta.json                 format, fingerprint, encoder name, width, dtype
      shard-00000/tokens.bin    [tokens, D], the captions one after the other, no padding
                  offsets.npy   [captions + 1] int64, where each begins in tokens.bin
                  digests.npy   [captions, 32] uint8, sha256 of each caption

A shard appears by one atomic rename, so that a killed `build` leaves whole shards only and the
next one goes on behind them. Several may run at once: they may repeat each other's work, but not
harm it.
"""

import hashlib
import itertools
import json
import os
import shutil
import socket
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_FORMAT = 1
_DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
}
# Captions a shard: what a killed build repeats at most.
_SHARD_SIZE = 8192


def build(
    captions: Iterable[str],
    encoder: Any,
    directory: str | Path,
    batch_size: int = 64,
    dtype: str | None = None,
    progress: bool = True,
    shard_size: int = _SHARD_SIZE,
) -> "EmbeddingCache":
    """Embeds the captions that the cache lacks, each once, and opens it.

    May be killed at any time: the next call embeds only what is not in a finished shard.

    Args:
      captions: any iterable of str, read once; repeats cost nothing.
      encoder: a `TextEncoder`.
      directory: of the cache; made if need be.
      batch_size: captions embedded at once.
      dtype: "float16", "bfloat16" or "float32", as stored; None: that of the existing cache, or
        float16, as encoders end in a norm, whose values stay far inside its range, and it keeps
        eight times more digits than bfloat16 in the same space.
      progress: show a progress bar.
      shard_size: captions in a shard.

    Raises:
      TypeError: a caption is not a str.
      ValueError: the cache has another dtype, or a value does not fit `dtype`.
    """
    root = Path(directory) / encoder.fingerprint
    dtype = _prepare(root, encoder, dtype)
    present = {digest.tobytes() for shard in _shards(root) for digest in _digests(shard)}
    from tqdm import tqdm

    total = len(captions) if hasattr(captions, "__len__") else None
    with tqdm(total=total, unit=" captions", desc="embedding", disable=not progress) as bar:
        for batch in _batched(_distinct(captions, present, bar), shard_size):
            _write_shard(root, batch, encoder, batch_size, dtype, bar)
    return EmbeddingCache.open(directory, encoder.fingerprint)


class EmbeddingCache:
    """Read access: `cache[caption]` is [its tokens, D] float32.

    Memory-mapped, safe to read from many threads, and cheap to pickle to worker processes, which
    map the files anew.

    Attributes:
      width: D.
      dtype: name of the type on disk.
    """

    def __init__(self, directory: Path, fingerprint: str, meta: dict[str, Any]):
        self._directory, self._fingerprint = directory, fingerprint
        self.width, self.dtype = meta["width"], meta["dtype"]
        shards = _shards(directory / fingerprint)
        self._tokens = [_map(s / "tokens.bin", _DTYPES[self.dtype], self.width) for s in shards]
        self._offsets = [np.load(shard / "offsets.npy") for shard in shards]
        digests = [_digests(shard) for shard in shards] or [np.zeros((0, 32), np.uint8)]
        sizes = [len(d) for d in digests]
        every = np.concatenate(digests)
        # Found by its first 8 bytes, sorted as numbers, then compared in full.
        heads = np.ascontiguousarray(every[:, :8]).view(">u8")[:, 0].astype(np.uint64)
        order = np.argsort(heads, kind="stable")
        self._heads, self._digests = heads[order], every[order]
        self._shard = np.repeat(np.arange(len(shards)), sizes)[order]
        self._row = np.concatenate([np.arange(n) for n in sizes])[order]

    @classmethod
    def open(cls, directory: str | Path, fingerprint: str) -> "EmbeddingCache":
        """Opens what `build` wrote in `directory` with the encoder of this fingerprint.

        Raises:
          ValueError: there is no cache, or only those of other encoders.
        """
        directory = Path(directory)
        path = directory / fingerprint / "meta.json"
        if not path.is_file():
            others = sorted(p.parent.name for p in directory.glob("*/meta.json"))
            found = f"only those of {', '.join(others)}" if others else "no cache at all"
            raise ValueError(
                f"{directory} must hold the embeddings of the encoder with fingerprint "
                f"{fingerprint}, got {found}; load the encoder (model, dtype, max_length) it was "
                "built with, or build it: scripts/train.py does so before it trains."
            )
        return cls(directory, fingerprint, _read_meta(path, fingerprint))

    def __getitem__(self, caption: str) -> np.ndarray:
        """The embeddings [its tokens, D] float32; ValueError if the caption is not there."""
        at = self._find(caption)
        if at is None:
            raise ValueError(
                f"the caption {caption!r} is not in the embedding cache {self._directory}; "
                "complete it: scripts/train.py does so before it trains, or call "
                "imagen_jax.text.cache.build with all captions."
            )
        shard, row = self._shard[at], self._row[at]
        start, stop = self._offsets[shard][row : row + 2]
        return np.asarray(self._tokens[shard][start:stop], np.float32)

    def __contains__(self, caption: str) -> bool:
        return self._find(caption) is not None

    def __len__(self) -> int:
        """How many captions there are."""
        return len(self._heads)

    def __reduce__(self):
        return EmbeddingCache.open, (self._directory, self._fingerprint)

    def _find(self, caption: str) -> int | None:
        digest = _digest(caption)
        head = np.uint64(int.from_bytes(digest[:8], "big"))
        at = int(np.searchsorted(self._heads, head))
        while at < len(self._heads) and self._heads[at] == head:
            if self._digests[at].tobytes() == digest:
                return at
            at += 1
        return None


def _digest(caption: str) -> bytes:
    # surrogatepass: half a character is no caption, but asking for one is no crash either.
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()


def _distinct(captions: Iterable[str], present: set[bytes], bar: Any) -> Iterator[tuple[bytes, str]]:
    """(digest, caption) of each caption whose digest is not in `present`, which grows."""
    for i, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(
                f"captions must be str, got {type(caption).__name__} at index {i}; decode or convert it."
            )
        digest = _digest(caption)
        if digest in present:
            bar.update()
            continue
        present.add(digest)
        yield digest, caption


def _batched(items: Iterator, size: int) -> Iterator[list]:
    while batch := list(itertools.islice(items, size)):
        yield batch


def _prepare(root: Path, encoder: Any, dtype: str | None) -> str:
    """Makes the directory or checks the one there; returns the dtype to store."""
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {sorted(_DTYPES)}, got {dtype!r}; pass one.")
    path = root / "meta.json"
    if path.is_file():
        stored = _read_meta(path, encoder.fingerprint)["dtype"]
        if dtype not in (None, stored):
            raise ValueError(
                f"the embedding cache {root} is stored as {stored}, got dtype {dtype!r}; leave "
                "dtype out, or choose another directory."
            )
        _remove_leftovers(root)
        return stored
    root.mkdir(parents=True, exist_ok=True)
    meta = {
        "format": _FORMAT,
        "fingerprint": encoder.fingerprint,
        "encoder": encoder.name,
        "width": encoder.width,
        "dtype": dtype or "float16",
    }
    temporary = _temporary(root)
    temporary.write_text(json.dumps(meta, indent=2) + "\n")
    os.replace(temporary, path)
    return meta["dtype"]


def _read_meta(path: Path, fingerprint: str) -> dict[str, Any]:
    meta = json.loads(path.read_text())
    if (meta.get("format"), meta.get("fingerprint")) != (_FORMAT, fingerprint):
        raise ValueError(
            f"{path} must be of format {_FORMAT} and fingerprint {fingerprint}, got "
            f"{meta.get('format')} and {meta.get('fingerprint')}; delete that directory and build "
            "it again."
        )
    return meta


def _shards(root: Path) -> list[Path]:
    return sorted(root.glob("shard-*"), key=lambda path: int(path.name.removeprefix("shard-")))


def _digests(shard: Path) -> np.ndarray:
    return np.load(shard / "digests.npy")


def _map(path: Path, dtype: np.dtype, width: int) -> np.ndarray:
    return np.memmap(path, dtype, mode="r").reshape(-1, width)


def _write_shard(
    root: Path,
    batch: Sequence[tuple[bytes, str]],
    encoder: Any,
    batch_size: int,
    dtype: str,
    bar: Any,
) -> None:
    """Embeds `batch` into a temporary directory, then renames it into the next shard."""
    temporary = _temporary(root)
    temporary.mkdir()
    captions = [caption for _, caption in batch]
    digests, offsets = [], [0]
    try:
        with (temporary / "tokens.bin").open("wb") as file:
            for i, embedding in encoder.encode_ragged(captions, batch_size):
                file.write(_stored(embedding, dtype, captions[i]).tobytes())
                digests.append(np.frombuffer(batch[i][0], np.uint8))
                offsets.append(offsets[-1] + len(embedding))
                bar.update()
            _sync(file)
        for name, array in (("offsets", np.array(offsets)), ("digests", np.stack(digests))):
            with (temporary / f"{name}.npy").open("wb") as file:
                np.save(file, array)
                _sync(file)
        _publish(temporary, root)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _stored(embedding: np.ndarray, dtype: str, caption: str) -> np.ndarray:
    with np.errstate(over="ignore"):  # Reported below, with the caption and what to do.
        stored = embedding.astype(_DTYPES[dtype])
    if not np.isfinite(stored).all():
        raise ValueError(
            f"embeddings stored as {dtype} must be finite in it, got values up to "
            f"{np.abs(embedding.astype(np.float32)).max()} for {caption!r}; build the cache in "
            "another directory with dtype='bfloat16' or 'float32'."
        )
    return stored


def _sync(file: Any) -> None:
    # The rename must not reach the disk before what it names.
    file.flush()
    os.fsync(file.fileno())


def _publish(temporary: Path, root: Path) -> None:
    shards = _shards(root)
    number = int(shards[-1].name.removeprefix("shard-")) + 1 if shards else 0
    while True:
        try:
            # Fails, and replaces nothing, where another process has just taken the number.
            temporary.rename(root / f"shard-{number:05d}")
            return
        except OSError:
            if not (root / f"shard-{number:05d}").exists():
                raise
            number += 1


def _temporary(root: Path) -> Path:
    return root / f"tmp-{uuid.uuid4().hex[:8]}-{os.getpid()}-{socket.gethostname()}"


def _remove_leftovers(root: Path) -> None:
    """Removes what killed builds of this machine left; others may still be at work."""
    for path in root.glob(f"tmp-*-*-{socket.gethostname()}"):
        pid = int(path.name.split("-")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            shutil.rmtree(path, ignore_errors=True)
        except PermissionError:  # Alive, another user's.
            continue
