"""The embeddings of all captions of a data set, computed once and read from disk by random access.

Layout, with one sub-directory per encoder so that embeddings never mix:

    directory/<encoder.fingerprint>/
      meta.json                 format, fingerprint, encoder's description, width, dtype, clean_captions
      shard-00000/tokens.bin    the tokens of the captions, one after the other, no padding
                  index.bin     a row per caption: hash, where it begins, how many tokens, their CRC-32
                  index.crc32   that of index.bin, in hex

A token is D numbers in the cache's dtype; in an int8 cache a float32 scale stands before them. Captions are
known by the sha256 of their cleaned text, so each distinct one is there once. The index is verified when a cache is
opened, the tokens of a caption whenever they are read. meta.json has a checksum too; caches without one are older,
and their shards may lack index.crc32.

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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imagen_jax import checks
from imagen_jax.progress import Progress, logger
from imagen_jax.storage import files
from imagen_jax.storage.locks import acquire_file_lock
from imagen_jax.text import cache_format, cleaning, model_files
from imagen_jax.text.encoder import UnknownTokensWarning, shorten, unknown_message

_ROW = cache_format.ROW
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
    repair: bool = False,
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
      repair: read all tokens of the share and embed captions again whose checksum is wrong; move shards aside
        whose index is damaged, to damaged-*. Otherwise those are an error, and wrong tokens one when they are read.

    Raises:
      TypeError: a caption is not a str.
      ValueError: the cache has another dtype or is damaged, a value does not fit `dtype`, or `share` is none.
    """
    is_pair = isinstance(share, tuple | list) and len(share) == 2 and all(map(checks.is_whole, share))
    is_share = is_pair and 0 <= share[0] < share[1]
    checks.require(is_share, "share", "be (i, n) with 0 <= i < n", share, "pass such a pair")
    checks.whole("batch_size", batch_size, 1)
    checks.whole("shard_size", shard_size, 1)
    checks.require(callable(on_embedded), "on_embedded", "be a function", on_embedded)
    if not isinstance(directory, str | Path):
        raise TypeError(f"directory must be a path; got {checks.shown(directory)}: pass a str.")
    if isinstance(captions, str | bytes | Mapping) or not isinstance(captions, Iterable):
        raise TypeError(f"captions must be an iterable of str; got {checks.shown(captions)}: pass a list.")
    root = Path(directory) / encoder.fingerprint
    dtype = _prepare(root, encoder, dtype)
    if total is None and hasattr(captions, "__len__"):
        total = len(captions)
    new, unknown = 0, []
    with _alone(root / f"share-{share[0]}-of-{share[1]}.lock"):
        _take_over(root, cache_format.token_type(dtype, encoder.width))
        present = _present(root, share, cache_format.token_type(dtype, encoder.width), repair)
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
        self._shards = _shards(directory / fingerprint)
        token, has_checksum = cache_format.token_type(self.dtype, self.width), "checksum" in meta
        self._rows = [cache_format.read_index(shard, has_checksum) for shard in self._shards]
        self._tokens = [
            cache_format.map_tokens(shard, token, rows)
            for shard, rows in zip(self._shards, self._rows, strict=True)
        ]
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
                f"{fingerprint}; got {f'only those of {others}' if others else 'no cache at all'}: load the "
                "encoder (model, dtype, output, max_length, clean_captions) it was built with, or build it: "
                "scripts/embed_text.py."
            )
        return cls(directory, fingerprint, cache_format.read_meta(path, fingerprint))

    def __getitem__(self, caption: str) -> np.ndarray:
        """The embeddings [its tokens, D] float32; ValueError if the caption is not there, or damaged."""
        damaged = ""
        for shard, row in self._find(caption):  # a damaged one that was embedded again is there twice
            tokens = cache_format.tokens_of(self._tokens[shard], self._rows[shard][row])
            if tokens is not None:
                return cache_format.restored(tokens)
            damaged = damaged or f"caption {row} of {self._shards[shard] / 'tokens.bin'}"
        if damaged:
            raise ValueError(
                f"{damaged}, {shorten(caption)}, is damaged: its checksum differs; run scripts/embed_text.py with the "
                "same options, which embeds again what is damaged, or call imagen_jax.text.cache.build with repair."
            )
        raise ValueError(
            f"the caption {caption!r} is not in the embedding cache {self._directory}; "
            "complete it with scripts/embed_text.py, or call imagen_jax.text.cache.build with all captions."
        )

    def __contains__(self, caption: str) -> bool:
        return next(self._find(caption), None) is not None

    def __len__(self) -> int:
        """How many captions there are."""
        return int(np.count_nonzero(np.diff(self._heads))) + min(len(self._heads), 1)

    def __reduce__(self):
        return EmbeddingCache.open, (self._directory, self._fingerprint)

    def _find(self, caption: str) -> Iterator[tuple[int, int]]:
        """Where a caption is: (shard, row in its index)."""
        if self._cleans:
            caption = cleaning.clean(caption)
        digest = np.frombuffer(_digest(caption), np.uint8)
        head = _heads(digest[None])[0]
        at = int(np.searchsorted(self._heads, head))
        while at < len(self._heads) and self._heads[at] == head:
            row = int(self._order[at])
            shard = int(np.searchsorted(self._starts, row, side="right")) - 1
            row -= int(self._starts[shard])
            if np.array_equal(self._rows[shard]["digest"][row], digest):
                yield shard, row
            at += 1


def describe(directory: str | Path) -> list[str]:
    """What caches there are, a line each: "<fingerprint> (<encoder>)"."""
    found = []
    for path in sorted(Path(directory).glob("*/meta.json")):
        try:
            encoder = model_files.read_json(path).get("encoder")
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
                f"captions must be str; got {type(caption).__name__} at index {i}: decode or convert it."
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


# --- files --------------------------------------------------------------------------------------


def _prepare(root: Path, encoder: Any, dtype: str | None) -> str:
    """Makes the directory or checks the one there; returns the dtype to store."""
    if dtype is not None and dtype not in cache_format.DTYPES:
        raise ValueError(f"dtype must be one of {sorted(cache_format.DTYPES)}; got {dtype!r}: pass one.")
    path = root / "meta.json"
    if path.is_file():
        meta = cache_format.read_meta(path, encoder.fingerprint)
        stored = meta["dtype"]
        if meta["width"] != encoder.width:
            raise cache_format.damaged_meta(
                path, f"its width is {meta['width']}, the encoder's {encoder.width}"
            )
        if dtype not in (None, stored):
            raise ValueError(
                f"the embedding cache {root} must be stored as {stored}, as it is; got dtype {dtype!r}: leave the "
                "dtype out, or delete that directory to embed everything again."
            )
        return stored
    if _shards(root):
        raise ValueError(
            f"{root} has shards but no meta.json, so their dtype is not known; delete it and build again."
        )
    getattr(encoder, "params", None)  # a model that cannot be read leaves no cache
    root.mkdir(parents=True, exist_ok=True)
    meta = {
        "format": cache_format.FORMAT,
        "fingerprint": encoder.fingerprint,
        "encoder": encoder.description,
        "width": encoder.width,
        "dtype": dtype or "float16",
        "clean_captions": encoder.clean_captions,
    }
    meta["checksum"] = cache_format.meta_checksum(meta)
    if not files.create(path, json.dumps(meta, indent=2) + "\n"):  # another process was first
        return _prepare(root, encoder, dtype)
    return meta["dtype"]


def _shards(root: Path) -> list[Path]:
    found = [path for path in root.glob("shard-*") if path.name.removeprefix("shard-").isdecimal()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("shard-")))


def _present(root: Path, share: tuple[int, int], token: np.dtype, repair: bool) -> set[bytes]:
    """The hashes of those captions of the share that need not be embedded."""
    has_checksum = "checksum" in model_files.read_json(root / "meta.json")
    present, damaged = set(), set()
    for shard in _shards(root):
        try:
            rows = cache_format.read_index(shard, has_checksum)
            tokens = cache_format.map_tokens(shard, token, rows)
        except cache_format.DamagedShardError as error:
            if not repair:
                raise
            aside = root / f"damaged-{shard.name.removeprefix('shard-')}-{uuid.uuid4().hex[:8]}"
            with contextlib.suppress(FileNotFoundError):  # another process was first
                shard.rename(aside)
                logger.warning(
                    f"{str(error).partition('; run ')[0]}; moved to {aside}, its captions are embedded again."
                )
            continue
        for row in rows[_is_in(share, rows["digest"])]:
            is_whole = not repair or cache_format.tokens_of(tokens, row) is not None
            (present if is_whole else damaged).add(row["digest"].tobytes())
    if damaged - present:
        logger.warning(f"{len(damaged - present)} captions in {root} are damaged, and are embedded again.")
    return present


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
        acquire_file_lock(index)
        try:
            for i, embedding in encoder.encode_ragged([caption for _, caption in batch], batch_size):
                digest, caption = batch[i]
                stored = cache_format.stored(embedding, dtype, caption)
                tokens.write(stored)
                tokens.flush()  # before the row that speaks of it
                row = (np.frombuffer(digest, np.uint8), start, len(embedding), zlib.crc32(stored))
                index.write(np.array(row, _ROW).tobytes())
                index.flush()
                start += len(embedding)
                bar.update()
                on_embedded()
        except BaseException:
            _cut_to_whole(tokens, index, cache_format.token_type(dtype, encoder.width))
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
                if (has_begun or os.fstat(index.fileno()).st_size) and acquire_file_lock(index):  # else it is at work
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
        size = int(row["length"]) * token.itemsize
        if int(row["start"]) != end or end * token.itemsize + size > os.fstat(tokens.fileno()).st_size:
            break
        if zlib.crc32(tokens.read(size)) != row["checksum"]:
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
        if not acquire_file_lock(file):
            with contextlib.suppress(OSError):  # no locks on this file system
                logger.info(f"Waiting for another process that embeds into {path.parent}.")
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _publish(temporary: Path, root: Path, tokens: BinaryIO, index: BinaryIO) -> None:
    """Renames a temporary directory, whose open files are given, to the next shard; nothing if it is empty."""
    for file in (tokens, index):
        # The rename must not reach the disk before what it names.
        file.flush()
        os.fsync(file.fileno())
    if not all(os.fstat(file.fileno()).st_size for file in (tokens, index)):
        shutil.rmtree(temporary, ignore_errors=True)
        return
    index.seek(0)
    files.write(temporary / "index.crc32", cache_format.checksum_line(index.read()))
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
