"""Reading one host's rows of a global batch of record numbers, as numpy arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require
from imagen_jax.data import opening, transforms
from imagen_jax.data.sources import Source

Read = dict[str, Any] | opening.UndecodableError  # a record, or the reason that it cannot be read
MAX_REPLACEMENTS = 100  # more broken records in a row mean a broken data set


@dataclasses.dataclass(frozen=True)
class BatchReader:
    """Turns the record numbers of a global batch into this host's rows; a picklable callable.

    Returns a dict of the b rows: "x" float32 [b, S, S, 3] in [-1, 1], "text" float32 [b, L, D], "text_mask" bool
    [b, L], "undecodable" int64 [b]: -1, or the number of a record that cannot be read or decoded, in whose row is the
    next one that can.
    """

    source: Source  # of records with "image" (encoded) and "caption"
    embeddings: Callable[[Sequence[int]], list[np.ndarray]]  # of records: [l, D], l >= 1; see `EmbeddingCache.rows`
    image_size: int  # side of the square pictures in pixels
    text_length: int  # L; shorter embeddings are padded with zeros, longer ones cut
    flip: bool = False  # mirror half of the pictures
    rows: slice | np.ndarray = dataclasses.field(default_factory=lambda: slice(None))  # of the global batch
    crop_size: int | None = None  # side S of a random crop of the square, in its place; all of it if None
    crop_grid: int = 1  # crops begin at multiples of this; S and image_size are multiples of it
    crop: str = "center"  # the window of a picture that becomes the square, see `transforms.window`

    def __post_init__(self):
        checks.whole("image_size", self.image_size, 1)
        checks.whole("text_length", self.text_length, 1)
        checks.choice("crop", self.crop, transforms.CROPS)
        size, grid = self.image_size if self.crop_size is None else self.crop_size, self.crop_grid
        rule = f"be a multiple of crop_grid {grid}, which divides image_size {self.image_size}, and at most that"
        is_crop = 0 < size <= self.image_size and size % grid == self.image_size % grid == 0
        require(is_crop, "crop_size", rule, size)

    def __call__(self, indices: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
        # Drawn for all rows, then sliced: a row's draw does not depend on the number of hosts. All draws are made for
        # any options, so that one option does not change another's draws.
        side = self.crop_size or self.image_size
        flips = (rng.random(len(indices)) < 0.5)[self.rows] & self.flip
        places = (self.image_size - side) // self.crop_grid + 1
        corners = rng.integers(places, size=(len(indices), 2))[self.rows] * self.crop_grid
        draws = rng.random((len(indices), transforms.NUM_DRAWS))[self.rows]
        indices = indices[self.rows]
        x = np.empty((len(indices), side, side, 3), np.float32)
        undecodable = np.full(len(indices), -1, np.int64)
        numbers = []
        for i, record in enumerate(_read(self.source, indices)):
            top, left = (int(first) for first in corners[i])
            columns = range(left, left + side)
            part = range(top, top + side), columns[::-1] if flips[i] else columns
            numbers.append(self._picture(int(indices[i]), record, draws[i], part, x[i]))
            if numbers[i] != indices[i]:
                undecodable[i] = indices[i]
        text = pad_text(self.embeddings(numbers), self.text_length)
        return text | {"x": x, "undecodable": undecodable}

    def _picture(self, index: int, record: Read, draws, part, out: np.ndarray) -> int:
        """Write a record's picture to `out`, or that of the next one that can be decoded, and return its number.

        Which one that is depends on nothing but the data.
        """
        options = {"crop": self.crop, "draws": draws, "part": part, "out": out}
        errors = []
        for step in range(min(MAX_REPLACEMENTS + 1, len(self.source))):
            number = (index + step) % len(self.source)
            used = _read(self.source, [number])[0] if step else record
            try:
                _decode(self.source, number, used, self.image_size, **options)
                return number
            except opening.UndecodableError as error:
                errors.append(error)
        raise _hopeless(errors) from errors[0]


def usable(source: Source, num: int, image_size: int) -> tuple[dict[int, dict], np.ndarray]:
    """Return the first `num` records whose picture can be decoded, by number, or as many as there are; and their
    pictures, float32 [N, S, S, 3] in [-1, 1], S = image_size.

    Raises:
      ValueError: far too many records in a row cannot be read or decoded.
    """
    x = np.empty((num, image_size, image_size, 3), np.float32)
    records, errors = {}, []  # errors: since the last usable record
    for number in range(len(source)):
        if len(records) == num:
            break
        (record,) = _read(source, [number])
        try:
            _decode(source, number, record, image_size, out=x[len(records)])
            records[number] = record
            errors.clear()
        except opening.UndecodableError as error:
            errors.append(error)
            if len(errors) > MAX_REPLACEMENTS:
                raise _hopeless(errors) from errors[0]
    if num and not records:
        raise _hopeless(errors) from errors[0]
    return records, x[: len(records)]


def reason_against(source: Source, number: int, image_size: int) -> str:
    """Return why a record cannot be read or its picture cannot be decoded; "" if both can be."""
    try:
        _decode(source, number, _read(source, [number])[0], image_size)
    except opening.UndecodableError as error:
        return error.reason
    return ""


def read_records(source: Source, indices: Sequence[int]) -> list[dict]:
    """Return the records at several indices; raise `opening.UndecodableError` if one cannot be read."""
    records = _read(source, indices)
    for record in records:
        if isinstance(record, Exception):
            raise record
    return records


def _read(source: Source, indices: Sequence[int]) -> list[Read]:
    """Return the records at several indices; instead of one that cannot be read, the error."""
    try:
        return list(source.read(indices))
    except MemoryError:
        raise
    except Exception as error:  # of any kind: RuntimeError, UnicodeDecodeError, DecodeError
        if len(indices) > 1:  # one damaged record fails them all
            return [record for index in indices for record in _read(source, [index])]
        not_text = "text that is not UTF-8: " if isinstance(error, UnicodeDecodeError) else ""
        reason = f"{not_text}{opening.one_line(error)}"
        where = f"Record {int(indices[0])} of {source.name}"
        return [opening.UndecodableError(f"{where} must be readable; it is not ({reason}).", reason)]


def _decode(source: Source, number: int, record: Read, image_size: int, **options) -> None:
    """Decode a record by `transforms.square`; raise the error that `_read` returned instead of it."""
    if isinstance(record, Exception):
        raise record
    transforms.square(record["image"], image_size, f"Record {number} of {source.name}", **options)


def _hopeless(errors: list[opening.UndecodableError]) -> ValueError:
    first = str(errors[0]).removesuffix(".")
    return ValueError(
        f"{first}, nor can the {len(errors) - 1} records after it: run imagen-jax prepare, which checks every picture."
    )


def pad_text(embeddings: Sequence[np.ndarray], text_length: int) -> dict[str, np.ndarray]:
    """Pad or cut B embeddings [l, D] to "text" float32 [B, L, D] and "text_mask" bool [B, L], L = text_length.

    Raises:
      ValueError: one has no token, or another width.
    """
    found = [np.asarray(embedding) for embedding in embeddings]
    width = found[0].shape[-1] if found[0].ndim == 2 else 0
    text = np.zeros((len(found), text_length, width), np.float32)
    mask = np.zeros((len(found), text_length), bool)
    for i, embedding in enumerate(found):
        is_right = embedding.ndim == 2 and embedding.shape[1] == width and embedding.size > 0
        got, fix = Verbatim(f"shape {embedding.shape} at index {i}"), "make them again with imagen-jax embed"
        require(is_right, "embeddings", "be [l, D] with l >= 1 and one D for all", got, fix)
        length = min(len(embedding), text_length)
        text[i, :length], mask[i, :length] = embedding[:length], True
    return {"text": text, "text_mask": mask}
