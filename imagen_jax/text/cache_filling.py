"""Filling an embedding cache: what is missing is embedded, what is damaged is embedded again."""

import contextlib
import dataclasses
import errno
import fcntl
import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from imagen_jax import checks
from imagen_jax.data import sources as data_sources
from imagen_jax.data.sources import Source
from imagen_jax.progress import Progress, logger
from imagen_jax.storage.locks import acquire_file_lock
from imagen_jax.text import cache_description, cache_files, cache_rows, encoders
from imagen_jax.text.cache_files import MISSING, UNFINISHED
from imagen_jax.text.captions import UnknownTokensWarning, unknown_message

CHUNK = 8192  # captions that are sorted by length and embedded together
READ = 1024  # captions read at once


def prepare(root: Path, encoder: encoders.Encoder, dtype: str | None) -> str:
    """Make the directory of a cache, or check the one there; return its dtype."""
    if dtype is not None:
        checks.choice("dtype", dtype, cache_files.DTYPES)
    path = root / cache_description.NAME
    if path.is_file():
        description = cache_description.read(path, encoder.fingerprint)
        stored = description["dtype"]
        if description["width"] != encoder.width:
            reason = f"its width is {description['width']}, the encoder's {encoder.width}"
            raise cache_description.damaged(path, reason)
        if dtype not in (None, stored):
            raise ValueError(
                f"the embedding cache {root} must be stored as {stored}, as it is; got dtype {dtype!r}: leave the "
                "dtype out, or delete that directory to embed everything again."
            )
        return stored
    if any(root.glob(cache_files.PATTERN)) or any(root.glob("shard-*")):  # the latter of an earlier version
        raise ValueError(
            f"{root} must have the file {path.name}, which says how its embeddings are stored; it is missing: restore "
            "it, or delete that directory and build it again."
        )
    getattr(encoder, "params", None)  # a model that cannot be read leaves no cache
    root.mkdir(parents=True, exist_ok=True)
    description = {
        "format": cache_description.FORMAT,
        "fingerprint": encoder.fingerprint,
        "encoder": getattr(encoder, "description", encoder.name),
        "width": encoder.width,
        "dtype": dtype or "float16",
        "clean_captions": getattr(encoder, "clean_captions", False),
    }
    if not cache_description.write(path, description):  # another process was first
        return prepare(root, encoder, dtype)
    return description["dtype"]


@dataclasses.dataclass
class Filling:
    """One call of `cache.build`; see there for the arguments. `num_new` captions have been embedded."""

    root: Path
    encoder: encoders.Encoder
    dtype: str
    batch_size: int
    share: tuple[int, int]
    on_progress: Callable[[], None]
    num_new: int = 0
    unknown: list[str] = dataclasses.field(default_factory=list)

    @property
    def prefix(self) -> str:
        return "share-{}-of-{}".format(*self.share)

    def run(self, captions: Iterable[str], sources: Sequence[Source], repair: bool) -> None:
        """Embed what is missing, and store which record of the sources has which embedding."""
        with _exclusive(self.root, self.prefix) as is_locked:
            _remove_unfinished(self.root, self.prefix if is_locked else None)
            damaged = self._repair() if repair else set()
            numbers, keys = self._embed_missing(captions, sources, damaged, skips_damaged=repair)
            index = cache_files.Index(self.root, skips_damaged=repair)
            for i, source in enumerate(sources):
                locations = cache_rows.load(self.root, source)
                locations[numbers[i]] = index.locate(keys[i])
                try:
                    cache_rows.save(self.root, source, locations)
                except OSError as error:
                    if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                        raise  # a cache that may only be read is complete without
        if self.unknown:
            logger.info(unknown_message(self.encoder.name, self.unknown, self.num_new))

    def _embed_missing(
        self, captions: Iterable[str], sources: Sequence[Source], damaged: set[bytes], skips_damaged: bool
    ) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Embed captions of the share, and the damaged ones; return the numbers and keys of the records read."""
        index = cache_files.Index(self.root, skips_damaged)
        unread = [np.flatnonzero(cache_rows.load(self.root, s) == MISSING) for s in sources]
        total = sum(map(len, unread)) + len(captions) if hasattr(captions, "__len__") else None
        numbers = [[np.empty(0, np.int64)] for _ in sources]
        keys_read = [[np.empty(0, cache_files.KEY)] for _ in sources]
        waiting, seen, is_told = {}, set(), not len(index) or self.share[0] > 0
        progress, files = Progress(total, "captions", "embedding"), cache_files.Writer(self.root, self.prefix)
        with progress as bar, files as writer:
            for i, part, texts in _chunks(captions, sources, unread):
                self.on_progress()
                cleaned = [encoders.clean(self.encoder, text) for text in texts]
                keys = [cache_rows.key_of(text) for text in cleaned]
                if i is not None:
                    numbers[i].append(np.array(part, np.int64))
                    keys_read[i].append(np.array(keys, cache_files.KEY))
                is_missing = index.locate(keys) == MISSING
                if is_missing.any() and not is_told:
                    some = ", ".join(repr(texts[j]) for j in np.flatnonzero(is_missing)[:3])
                    logger.info(f"{self.root.parent} lacks captions, such as {some}: they are embedded now.")
                    is_told = True
                for key, text, is_new in zip(keys, cleaned, is_missing, strict=True):
                    if not is_new or key in seen or not (self._is_mine(key) or key in damaged):
                        bar.update()
                        continue
                    seen.add(key)
                    waiting[key] = text
                    if len(waiting) == CHUNK:
                        self._embed(waiting, writer, bar)
                        waiting.clear()
            self._embed(waiting, writer, bar)
        return [*map(np.concatenate, numbers)], [*map(np.concatenate, keys_read)]

    def _embed(self, captions: dict[bytes, str], writer: cache_files.Writer, bar: Progress) -> None:
        """Embed captions, by their keys, in batches of similar length."""
        keys, texts = list(captions), list(captions.values())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnknownTokensWarning)  # counted over all captions instead
            for i, embedding in encoders.encode_ragged(self.encoder, texts, self.batch_size):
                writer.add(keys[i], cache_files.to_bytes(embedding, self.dtype, texts[i]))
                self.num_new += 1
                bar.update()
                self.on_progress()
        if texts and hasattr(self.encoder, "mostly_unknown"):
            self.unknown += [texts[i] for i in self.encoder.mostly_unknown(texts)]

    def _is_mine(self, key: bytes) -> bool:
        return int.from_bytes(key[:8], "big") % self.share[1] == self.share[0]

    def _repair(self) -> set[bytes]:
        """Read all embeddings in this share of the files; return the keys of those that are damaged.

        What is sound in a damaged file is copied to a new one, and the file is moved aside.
        """
        damaged = set()
        records = cache_files.RecordFiles(self.root)
        for number in records.numbers():
            if number % self.share[1] != self.share[0]:
                continue
            path = records.path(number)
            try:
                keys = cache_files.as_bytes(records.keys(number))
            except cache_files.DamagedFileError as error:
                self._move_aside(path, str(error).partition(": run ")[0])
                continue
            contents = self._contents(records, number, len(keys))
            wrong = [key for key, content in zip(keys, contents, strict=True) if content is None]
            if wrong:
                with cache_files.Writer(self.root, self.prefix) as writer:
                    for key, content in zip(keys, self._contents(records, number, len(keys)), strict=True):
                        if content is not None:
                            writer.add(key, content)
                self._move_aside(path, f"{len(wrong)} captions in {path} are damaged")
                damaged.update(wrong)
        return damaged

    def _contents(self, records: cache_files.RecordFiles, number: int, num: int) -> Iterator[bytes | None]:
        for start in range(0, num, 64):
            self.on_progress()
            part = np.arange(start, min(start + 64, num), dtype=np.uint64)
            yield from records.read(part + np.uint64(number << 32))

    def _move_aside(self, path: Path, reason: str) -> None:
        aside = path.with_name(f"damaged-{path.name}")
        with contextlib.suppress(FileNotFoundError):  # another process was first
            path.rename(aside)
            logger.warning(f"{reason}; moved to {aside.name}, its damaged captions are embedded again.")


def _chunks(
    captions: Iterable[str], sources: Sequence[Source], unread: Sequence[np.ndarray]
) -> Iterator[tuple[int | None, Sequence[int], list[str]]]:
    """Yield (index of the source, record numbers, captions) of what is to be read, then (None, (), captions)."""
    for i, (source, numbers) in enumerate(zip(sources, unread, strict=True)):
        for part, texts in data_sources.numbered_captions(source, numbers, READ):
            yield i, part, texts
    captions, index = iter(captions), 0
    while texts := list(itertools.islice(captions, READ)):
        for i, text in enumerate(texts, index):
            if not isinstance(text, str):
                raise TypeError(
                    f"captions must be str; got {type(text).__name__} at index {i}: decode or convert it."
                )
        index += len(texts)
        yield None, (), texts


# --- processes ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _exclusive(root: Path, name: str) -> Iterator[bool]:
    """Wait until no other process is in this context with the same name; yield whether it is locked."""
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((root / f"{name}.lock").open("wb"))
        except OSError:  # a cache that may only be read: whoever writes to it fails soon enough
            yield False
            return
        is_locked = acquire_file_lock(file)
        if not is_locked:
            with contextlib.suppress(OSError):  # no locks on this file system
                logger.info(f"Waiting for another process that embeds into {root}.")
                fcntl.flock(file, fcntl.LOCK_EX)
                is_locked = True
        yield is_locked


def _remove_unfinished(root: Path, own: str | None) -> None:
    """Delete the unfinished files that killed processes left; `own` is the name that this process has locked."""
    for path in root.glob(f"*{UNFINISHED}"):
        name = path.name.rpartition("-")[0]
        # Gone: removed by another process meanwhile. Not permitted: a cache of somebody else, which may only be read.
        with contextlib.suppress(FileNotFoundError, PermissionError):
            if name == own:
                path.unlink()
                continue
            with (root / f"{name}.lock").open("wb") as file:
                if acquire_file_lock(file):
                    path.unlink()
