"""The embeddings of all captions of a data set, computed once and read from disk by random access.

Layout, with one directory per encoder so that embeddings never mix:

    directory/<encoder.fingerprint>/
      embeddings.json                format, fingerprint, encoder's description, width, dtype, clean_captions, checksum
      embeddings-*.array_record      a record per caption: its tokens; then a record with the keys of all of them
      rows-NAME.array_record-*.npz   for each record file of the data set: which embedding belongs to which record

A token is D numbers in the cache's dtype; in an int8 cache a float32 scale stands before them. Nothing is padded. The
key of a caption is from the sha256 of its cleaned text, so that equal captions share one embedding. ArrayRecord
verifies the checksum of each record that is read.

Several processes may fill a cache at once, each its share of the captions; of two with the same share one waits.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from imagen_jax import checks
from imagen_jax.config import StageConfig
from imagen_jax.data import sources as data_sources
from imagen_jax.data.sources import Source
from imagen_jax.text import cache_description, cache_files, cache_filling, cache_rows, encoders, model_files
from imagen_jax.text.cache_files import MISSING
from imagen_jax.text.captions import shorten
from imagen_jax.text.cleaning import clean


def directory_of(data: str | Path) -> Path:
    """Return where the embeddings of a data set are."""
    return Path(data) / "text_embeddings"


def always_needed(config: StageConfig) -> tuple[str, ...]:
    """Return the captions that a stage needs besides those of data sets: the empty one if its guidance reads it."""
    return ("",) if config.network.reads_empty_caption else ()


class EmbeddingCache:
    """Read access: by caption, `cache[caption]` is [its tokens, D] float32; by record of a data set, see `rows`.

    Holds 24 bytes per caption; what `rows` returns does not. Safe to read from many threads, and picklable for worker
    processes, which open the files again.

    `width` is D, `dtype` the type on disk, `nbytes` the size of the files, and `num_new` how many captions the
    `build` that returned it has embedded.
    """

    num_new = 0

    def __init__(self, directory: Path, fingerprint: str, description: dict[str, Any]):
        self._directory, self._fingerprint, self._root = directory, fingerprint, directory / fingerprint
        self._cleans = description["clean_captions"]
        self.width, self.dtype = description["width"], description["dtype"]
        self._token = cache_files.token_type(self.dtype, self.width)
        self._index, self._records = cache_files.Index(self._root), cache_files.RecordFiles(self._root)
        self.nbytes = sum(self._records.path(i).stat().st_size for i in self._records.numbers())

    @classmethod
    def open(cls, directory: str | Path, fingerprint: str) -> "EmbeddingCache":
        """Open what `build` wrote in `directory` with the encoder of this fingerprint.

        Raises:
          ValueError: there is no cache, or only those of other encoders, or it is damaged.
        """
        directory = Path(directory)
        check_encoder(directory, fingerprint)
        path = directory / fingerprint / cache_description.NAME
        return cls(directory, fingerprint, cache_description.read(path, fingerprint))

    def __getitem__(self, caption: str) -> np.ndarray:
        """Return the embeddings [its tokens, D] float32; raise ValueError if there are none, or they are damaged."""
        (location,) = locations = self._locate([caption])
        if location == MISSING:
            raise ValueError(
                f"the embedding cache {self._directory} must hold every caption; got none for {caption!r}: "
                "complete it with imagen-jax embed, or call imagen_jax.text.cache.build with all captions."
            )
        try:
            return self._records.embeddings(locations, self._token)[0]
        except ValueError as error:
            raise checks.within(f"{shorten(caption)} cannot be read", error) from error

    def __contains__(self, caption: str) -> bool:
        return self._locate([caption])[0] != MISSING

    def __len__(self) -> int:
        """Return how many different captions there are."""
        return len(self._index)

    def __reduce__(self):
        return EmbeddingCache.open, (self._directory, self._fingerprint)

    def rows(self, source: Source) -> cache_rows.RowEmbeddings:
        """Return the embeddings of a data set's records by their numbers, as `data.pipeline.make_loader` takes them.

        Captions are read and hashed here only if `build` has not stored which record has which embedding.

        Raises:
          ValueError: the caption of a record is not in the cache.
        """
        locations = cache_rows.load(self._root, source)
        for numbers, captions in data_sources.numbered_captions(source, np.flatnonzero(locations == MISSING)):
            locations[numbers] = found = self._locate(captions)
            if MISSING in found:
                _ = self[captions[int(np.argmax(found == MISSING))]]  # raises
        return cache_rows.RowEmbeddings(self._records, self._token, locations, source.name)

    def _locate(self, captions: Sequence[str]) -> np.ndarray:
        cleaned = map(clean, captions) if self._cleans else captions
        return self._index.locate([cache_rows.key_of(caption) for caption in cleaned])


def describe(directory: str | Path) -> list[str]:
    """Return what caches there are, a line each: "<fingerprint> (<encoder>)"."""
    found = []
    for path in sorted(Path(directory).glob(f"*/{cache_description.NAME}")):
        try:
            encoder = model_files.read_json(path).get("encoder")
        except ValueError:
            encoder = "damaged"
        found.append(f"{path.parent.name} ({encoder})")
    return found


def check_encoder(directory: str | Path, fingerprint: str, description: str = "") -> None:
    """Raise ValueError unless there is a cache of the encoder with this fingerprint; `description` says more of it."""
    found = describe(directory)
    if not any(line.startswith(f"{fingerprint} ") for line in found):
        got = f"only those of {', '.join(found)}" if found else "no cache at all"
        what = f"{fingerprint} ({description})" if description else fingerprint
        raise ValueError(
            f"{directory} must hold the embeddings of the encoder with fingerprint {what}; got {got}: use the encoder "
            "(weights, dtype, output, length, clean_captions) that they were made with, or make those of this one: "
            "imagen-jax embed."
        )


# --- filling ------------------------------------------------------------------------------------


def build(
    captions: Iterable[str],
    encoder: encoders.Encoder,
    directory: str | Path,
    *,
    sources: Sequence[Source] = (),
    batch_size: int = 64,
    dtype: str | None = None,
    share: tuple[int, int] = (0, 1),
    repair: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> EmbeddingCache:
    """Embed the captions that the cache lacks, each once, and open it.

    May be stopped at any time: the next call continues. Of what a killed process (SIGKILL, power cut) has embedded, the
    last minute is lost, or the last twentieth of its time, if that is longer.

    Args:
      captions: any iterable of str, read once; repeats cost nothing.
      encoder: a `TextEncoder`, or anything with its name, width, fingerprint and encode.
      directory: of the cache; made if need be.
      sources: splits of a data set, whose captions are embedded too. Which record has which embedding is stored, so
        that what is known is not read again.
      batch_size: captions embedded at once, of similar length.
      dtype: "float16", "bfloat16", "float32", or "int8" with a scale per token, as stored; None: that of the existing
        cache, or float16: encoders end in a norm, whose values stay far inside its range.
      share: (i, n) embeds the i-th of n shares of the captions, by their hash, so that n processes embed all.
      repair: read all embeddings (of the i-th of n shares of the files) and embed captions again whose record is
        damaged; such files are moved aside, to damaged-*. Otherwise they are an error, when they are opened or read.
      on_progress: called whenever captions have been read or embedded.

    Raises:
      TypeError: a caption is not a str.
      ValueError: the cache has another dtype or is damaged, a value does not fit `dtype`, or `share` is none.
      OSError: the directory cannot be written.
    """
    is_pair = isinstance(share, tuple | list) and len(share) == 2 and all(map(checks.is_whole, share))
    checks.require(is_pair and 0 <= share[0] < share[1], "share", "be (i, n) with 0 <= i < n", share)
    checks.whole("batch_size", batch_size, 1)
    checks.require(callable(on_progress), "on_progress", "be a function", on_progress)
    if not isinstance(directory, str | Path):
        raise TypeError(f"directory must be a path; got {checks.shown(directory)}: pass a str.")
    if isinstance(captions, str | bytes | Mapping) or not isinstance(captions, Iterable):
        raise TypeError(f"captions must be an iterable of str; got {checks.shown(captions)}: pass a list.")
    encoders.check(encoder)
    root = Path(directory) / encoder.fingerprint
    dtype = cache_filling.prepare(root, encoder, dtype)
    filling = cache_filling.Filling(root, encoder, dtype, batch_size, share, on_progress)
    filling.run(captions, sources, repair)
    cache = EmbeddingCache.open(directory, encoder.fingerprint)
    cache.num_new = filling.num_new
    return cache
