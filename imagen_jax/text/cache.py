"""The embeddings of all captions of a data set, computed once and read from disk by random access.

Layout, with one sub-directory per encoder so that embeddings never mix:

    directory/<encoder.fingerprint>/
      meta.json                 format, fingerprint, encoder's description, width, dtype, clean_captions
      shard-00000/tokens.bin    the tokens of the captions, one after the other, no padding
                  index.bin     a row per caption: hash, where it begins, how many tokens, checksum

A token is D numbers in the cache's dtype; in an int8 cache a float32 scale stands before them. Captions are
known by the sha256 of their cleaned text, so each distinct one is there once.

A shard grows under a temporary name that its process holds locked, and takes its own name when it is
full. What a killed process leaves is taken over by the next `build`, up to the last caption whose checksum
is right: nothing that was written is embedded again. Several processes may build at once, each its share;
of two with the same share one waits. (Where the file system has no locks, what a killed process left of its
last shard is embedded again, and nothing waits.)
"""

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import time
import uuid
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from imagen_jax import files
from imagen_jax.locks import lock
from imagen_jax.progress import Progress, logger
from imagen_jax.text import cleaning, pretrained
from imagen_jax.text.encoder import UnknownTokensWarning, unknown_message

_FORMAT = 2
_DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
}
_ROW = np.dtype([("digest", np.uint8, 32), ("start", "<u8"), ("length", "<u4"), ("checksum", "<u4")])
_SHARD_SIZE = 8192  # captions
_JUST_BEGUN = 60.0  # seconds in which a shard may be empty and not locked yet


def directory_of(data: str | Path) -> Path:
    """Where the embeddings of a data set lie."""
    return Path(data) / "text_embeddings"


def build(
    captions: Iterable[str],
    encoder: Any,
    directory: str | Path,
    batch_size: int = 64,
    dtype: str | None = None,
    progress: bool = True,
    shard_size: int = _SHARD_SIZE,
    share: tuple[int, int] = (0, 1),
    total: int | None = None,
    on_embedded: Callable[[], None] = lambda: None,
) -> "EmbeddingCache":
    """Embeds the captions that the cache lacks, each once, and opens it.

    May be killed at any time: the next call goes on behind what was written.

    Args:
      captions: any iterable of str, read once; repeats cost nothing.
      encoder: a `TextEncoder`.
      directory: of the cache; made if need be.
      batch_size: captions embedded at once, of similar length.
      dtype: "float16", "bfloat16", "float32", or "int8" with a scale per token, as stored; None: that of
        the existing cache, or float16, as encoders end in a norm, whose values stay far inside its range,
        and it keeps eight times more digits than bfloat16 in the same space.
      progress: show how many are done.
      shard_size: captions in a shard.
      share: (i, n) embeds the i-th of n shares of the captions, by their hash: n processes together embed
        all of them, each once.
      total: how many captions there are, for the progress bar.
      on_embedded: called after each new caption.

    Raises:
      TypeError: a caption is not a str.
      ValueError: the cache has another dtype, a value does not fit `dtype`, or `share` is none.
    """
    if not 0 <= share[0] < share[1]:
        raise ValueError(f"share must be (i, n) with 0 <= i < n, got {share}; pass such a pair.")
    if batch_size < 1 or shard_size < 1:
        raise ValueError(f"batch_size and shard_size must be positive, got {batch_size} and {shard_size}.")
    if isinstance(captions, str):
        raise TypeError(f"captions must be an iterable of str, got the str {captions!r}; put it in [].")
    root = Path(directory) / encoder.fingerprint
    dtype = _prepare(root, encoder, dtype)
    if total is None and hasattr(captions, "__len__"):
        total = len(captions)
    new, unknown = 0, []
    with _alone(root / f"share-{share[0]}-of-{share[1]}.lock"):
        _take_over(root, _token(dtype, encoder.width))
        present = set()
        for shard in _shards(root):
            digests = np.asarray(_index(shard)["digest"])
            present.update(digest.tobytes() for digest in digests[_is_in(share, digests)])
        with Progress(total, "captions", "embedding", shown=progress) as bar:
            for batch in _batched(_distinct(captions, encoder, present, share, bar), shard_size):
                with warnings.catch_warnings():
                    # They are counted over all of the captions.
                    warnings.simplefilter("ignore", UnknownTokensWarning)
                    _write_shard(root, batch, encoder, batch_size, dtype, bar, on_embedded)
                texts = [caption for _, caption in batch]
                unknown += [texts[i] for i in encoder.mostly_unknown(texts)]
                new += len(batch)
    if unknown:
        logger.info(unknown_message(encoder.name, unknown, new))
    cache = EmbeddingCache.open(directory, encoder.fingerprint)
    cache.num_new = new
    return cache


class EmbeddingCache:
    """Read access: `cache[caption]` is [its tokens, D] float32.

    Memory-mapped, safe to read from many threads, and cheap to pickle to worker processes, which
    map the files anew. 16 bytes per caption are held in memory.

    Attributes:
      width: D.
      dtype: name of the type on disk.
      nbytes: of all tokens and their index on disk.
      num_new: how many captions the `build` that returned it has embedded.
    """

    num_new = 0

    def __init__(self, directory: Path, fingerprint: str, meta: dict[str, Any]):
        self._directory, self._fingerprint = directory, fingerprint
        self._cleans = meta["clean_captions"]
        self.width, self.dtype = meta["width"], meta["dtype"]
        shards = _shards(directory / fingerprint)
        token = _token(self.dtype, self.width)
        self._rows = [_index(shard) for shard in shards]
        self._tokens = [_tokens(shard, token, rows) for shard, rows in zip(shards, self._rows, strict=True)]
        self.nbytes = sum(part.nbytes for part in (*self._rows, *self._tokens))
        self._starts = np.cumsum([0, *map(len, self._rows)])
        # Found by the first 8 bytes of its hash, then compared in full.
        heads = [np.zeros(0, np.uint64), *(_heads(rows["digest"]) for rows in self._rows)]
        heads = np.concatenate(heads)
        self._order = np.argsort(heads, kind="stable")
        self._heads = heads[self._order]

    @classmethod
    def open(cls, directory: str | Path, fingerprint: str) -> "EmbeddingCache":
        """Opens what `build` wrote in `directory` with the encoder of this fingerprint.

        Raises:
          ValueError: there is no cache, or only those of other encoders, or it is damaged.
        """
        directory = Path(directory)
        path = directory / fingerprint / "meta.json"
        if not path.is_file():
            others = ", ".join(describe(directory))
            raise ValueError(
                f"{directory} must hold the embeddings of the encoder with fingerprint "
                f"{fingerprint}, got {f'only those of {others}' if others else 'no cache at all'}; load the "
                "encoder (model, dtype, output, max_length, clean_captions) it was built with, or build it: "
                "scripts/embed_text.py."
            )
        return cls(directory, fingerprint, _read_meta(path, fingerprint))

    def __getitem__(self, caption: str) -> np.ndarray:
        """The embeddings [its tokens, D] float32; ValueError if the caption is not there."""
        row = self._find(caption)
        if row is None:
            raise ValueError(
                f"the caption {caption!r} is not in the embedding cache {self._directory}; "
                "complete it with scripts/embed_text.py, or call imagen_jax.text.cache.build with all captions."
            )
        shard = int(np.searchsorted(self._starts, row, side="right")) - 1
        where = self._rows[shard][row - self._starts[shard]]
        return _restored(self._tokens[shard][int(where["start"]) :][: int(where["length"])])

    def __contains__(self, caption: str) -> bool:
        return self._find(caption) is not None

    def __len__(self) -> int:
        """How many captions there are."""
        return len(self._heads)

    def __reduce__(self):
        return EmbeddingCache.open, (self._directory, self._fingerprint)

    def _find(self, caption: str) -> int | None:
        if self._cleans:
            caption = cleaning.clean(caption)
        digest = np.frombuffer(_digest(caption), np.uint8)
        head = _heads(digest[None])[0]
        at = int(np.searchsorted(self._heads, head))
        while at < len(self._heads) and self._heads[at] == head:
            row = int(self._order[at])
            shard = int(np.searchsorted(self._starts, row, side="right")) - 1
            if np.array_equal(self._rows[shard]["digest"][row - self._starts[shard]], digest):
                return row
            at += 1
        return None


def describe(directory: str | Path) -> list[str]:
    """What caches there are, a line each: "<fingerprint> (<encoder>)"."""
    found = []
    for path in sorted(Path(directory).glob("*/meta.json")):
        try:
            encoder = pretrained.read_json(path).get("encoder")
        except ValueError:
            encoder = "damaged"
        found.append(f"{path.parent.name} ({encoder})")
    return found


# --- captions -----------------------------------------------------------------------------------


def _digest(caption: str) -> bytes:
    # surrogatepass: half a character is no caption, but asking for one is no crash either.
    return hashlib.sha256(caption.encode("utf-8", "surrogatepass")).digest()


def _heads(digests: np.ndarray) -> np.ndarray:
    """uint8 [N, 32] -> uint64 [N], the first 8 bytes as numbers."""
    return np.ascontiguousarray(digests[:, :8]).view(">u8")[:, 0].astype(np.uint64)


def _is_in(share: tuple[int, int], digests: np.ndarray) -> np.ndarray:
    """uint8 [N, 32] -> bool [N]: which belong to the share."""
    return _heads(digests) % np.uint64(share[1]) == share[0]


def _distinct(
    captions: Iterable[str], encoder: Any, present: set[bytes], share: tuple[int, int], bar: Progress
) -> Iterator[tuple[bytes, str]]:
    """(digest, cleaned caption) of each of the share whose digest is not in `present`, which grows."""
    for i, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(
                f"captions must be str, got {type(caption).__name__} at index {i}; decode or convert it."
            )
        caption = encoder.clean(caption)
        digest = _digest(caption)
        if not _is_in(share, np.frombuffer(digest, np.uint8)[None])[0] or digest in present:
            bar.update()
            continue
        present.add(digest)
        yield digest, caption


def _batched(items: Iterator, size: int) -> Iterator[list]:
    while batch := list(itertools.islice(items, size)):
        yield batch


# --- tokens -------------------------------------------------------------------------------------


def _token(dtype: str, width: int) -> np.dtype:
    """One token on disk."""
    if dtype == "int8":
        return np.dtype([("scale", "<f4"), ("values", np.int8, (width,))])
    return np.dtype((_DTYPES[dtype], (width,)))


def _stored(embedding: np.ndarray, dtype: str, caption: str) -> bytes:
    """[L, D] as it lies on disk; ValueError if a value does not fit."""
    largest = np.abs(embedding.astype(np.float32)).max(axis=-1)  # [L]
    with np.errstate(over="ignore", invalid="ignore"):  # Reported below, with the caption and what to do.
        if dtype == "int8":
            stored = np.empty(len(embedding), _token(dtype, embedding.shape[-1]))
            stored["scale"] = scale = np.maximum(largest / np.float32(127), np.float32(1e-30))
            stored["values"] = np.rint(np.nan_to_num(embedding.astype(np.float32) / scale[:, None]))
            is_finite = np.isfinite(largest).all()
        else:
            stored = embedding.astype(_DTYPES[dtype])
            is_finite = np.isfinite(stored).all()
    if not is_finite:
        fix = "delete the cache and build it with dtype (--store) 'bfloat16' or 'float32'"
        if not np.isfinite(largest).all():
            fix = "the encoder's weights are damaged, or its dtype is too small for it: get them again, or try float32"
        raise ValueError(
            f"embeddings stored as {dtype} must be finite in it, got values up to {largest.max()} for {caption!r}; "
            f"{fix}."
        )
    return stored.tobytes()


def _restored(tokens: np.ndarray) -> np.ndarray:
    """Tokens from the disk -> [L, D] float32."""
    if tokens.dtype.names:
        return tokens["values"].astype(np.float32) * tokens["scale"][:, None]
    return np.asarray(tokens, np.float32)


# --- files --------------------------------------------------------------------------------------


def _prepare(root: Path, encoder: Any, dtype: str | None) -> str:
    """Makes the directory or checks the one there; returns the dtype to store."""
    if dtype is not None and dtype not in _DTYPES:
        raise ValueError(f"dtype must be one of {sorted(_DTYPES)}, got {dtype!r}; pass one.")
    path = root / "meta.json"
    if path.is_file():
        stored = _read_meta(path, encoder.fingerprint)["dtype"]
        if dtype not in (None, stored):
            raise ValueError(
                f"the embedding cache {root} is stored as {stored}, got dtype {dtype!r}; leave the dtype out, or "
                "delete that directory to embed everything again."
            )
        return stored
    if _shards(root):
        raise ValueError(
            f"{root} has shards but no meta.json, so their dtype is not known; delete it and build again."
        )
    root.mkdir(parents=True, exist_ok=True)
    meta = {
        "format": _FORMAT,
        "fingerprint": encoder.fingerprint,
        "encoder": encoder.description,
        "width": encoder.width,
        "dtype": dtype or "float16",
        "clean_captions": encoder.clean_captions,
    }
    if not files.create(path, json.dumps(meta, indent=2) + "\n"):  # another process was first
        return _prepare(root, encoder, dtype)
    return meta["dtype"]


def _read_meta(path: Path, fingerprint: str) -> dict[str, Any]:
    meta = pretrained.read_json(path)
    is_whole = {"width", "dtype", "clean_captions"} <= set(meta) and meta["dtype"] in _DTYPES
    if not is_whole or (meta.get("format"), meta.get("fingerprint")) != (_FORMAT, fingerprint):
        raise ValueError(
            f"{path} must be of format {_FORMAT} and fingerprint {fingerprint}, got "
            f"{meta.get('format')} and {meta.get('fingerprint')}; delete that directory and build "
            "it again."
        )
    return meta


def _shards(root: Path) -> list[Path]:
    found = [path for path in root.glob("shard-*") if path.name.removeprefix("shard-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("shard-")))


def _index(shard: Path) -> np.ndarray:
    path = shard / "index.bin"
    size = path.stat().st_size if path.is_file() else 0
    if not size or size % _ROW.itemsize or not (shard / "tokens.bin").is_file():
        raise ValueError(
            f"{shard} is damaged: it must hold tokens.bin and a whole index.bin; delete it and build the cache again, "
            "which embeds only what is missing."
        )
    return np.memmap(path, _ROW, mode="r")


def _tokens(shard: Path, token: np.dtype, rows: np.ndarray) -> np.ndarray:
    """The tokens of a whole shard, memory-mapped: [tokens] of records, or [tokens, D]."""
    path, expected = shard / "tokens.bin", int(rows["length"].sum(dtype=np.int64)) * token.itemsize
    if path.stat().st_size != expected:
        raise ValueError(
            f"{path} must have {expected} bytes, as its index says, got {path.stat().st_size}: the file is "
            f"damaged; delete {shard} and build the cache again, which embeds only what is missing."
        )
    mapped = np.memmap(path, token.base, mode="r")
    return mapped if token.names else mapped.reshape(-1, token.shape[0])


def _write_shard(
    root: Path,
    batch: Sequence[tuple[bytes, str]],
    encoder: Any,
    batch_size: int,
    dtype: str,
    bar: Progress,
    on_embedded: Callable[[], None],
) -> None:
    """Embeds `batch` into a temporary directory, which becomes the next shard; also if it is interrupted."""
    temporary = root / f"tmp-{uuid.uuid4().hex}"
    temporary.mkdir()
    start = 0
    with (temporary / "tokens.bin").open("w+b") as tokens, (temporary / "index.bin").open("w+b") as index:
        lock(index)
        try:
            for i, embedding in encoder.encode_ragged([caption for _, caption in batch], batch_size):
                digest, caption = batch[i]
                stored = _stored(embedding, dtype, caption)
                tokens.write(stored)
                tokens.flush()  # before the row that speaks of it
                row = (np.frombuffer(digest, np.uint8), start, len(embedding), zlib.crc32(stored))
                index.write(np.array(row, _ROW).tobytes())
                index.flush()
                start += len(embedding)
                bar.update()
                on_embedded()
        except BaseException:
            _cut_to_whole(tokens, index, _token(dtype, encoder.width))
            raise
        finally:
            _publish(temporary, root, tokens, index)


def _take_over(root: Path, token: np.dtype) -> None:
    """Makes shards of what killed processes left."""
    for left in sorted(root.glob("tmp-*")):
        # Gone: taken over by another process meanwhile. Not permitted: somebody else's cache, to be read only.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            has_begun = time.time() - left.stat().st_mtime > _JUST_BEGUN
            if not (left / "index.bin").exists():
                if has_begun:
                    shutil.rmtree(left)
                continue
            with (left / "tokens.bin").open("r+b") as tokens, (left / "index.bin").open("r+b") as index:
                if (has_begun or os.fstat(index.fileno()).st_size) and lock(index):  # else it is at work
                    _cut_to_whole(tokens, index, token)
                    _publish(left, root, tokens, index)


def _cut_to_whole(tokens: BinaryIO, index: BinaryIO, token: np.dtype) -> None:
    """Cuts both files of a shard behind the last caption that was written in full."""
    for file in (tokens, index):
        file.flush()
        file.seek(0)
    rows = np.fromfile(index, _ROW, count=os.fstat(index.fileno()).st_size // _ROW.itemsize)
    whole, end = 0, 0
    for row in rows:
        stored = tokens.read(int(row["length"]) * token.itemsize)
        if int(row["start"]) != end or zlib.crc32(stored) != row["checksum"]:
            break
        whole, end = whole + 1, end + int(row["length"])
    index.truncate(whole * _ROW.itemsize)
    tokens.truncate(end * token.itemsize)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Waits until no other process is in here with the same path."""
    try:
        file = path.open("wb")
    except OSError:  # a cache that may only be read: whoever writes to it fails soon enough
        yield
        return
    with file:
        if not lock(file):
            with contextlib.suppress(OSError):  # no locks on this file system
                logger.info(f"Waiting for another process that embeds into {path.parent}.")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _publish(temporary: Path, root: Path, *opened: BinaryIO) -> None:
    """Renames a temporary directory, whose open files are given, to the next shard; nothing if it is empty."""
    for file in opened:
        # The rename must not reach the disk before what it names.
        file.flush()
        os.fsync(file.fileno())
    if not all(os.fstat(file.fileno()).st_size for file in opened):
        shutil.rmtree(temporary, ignore_errors=True)
        return
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
