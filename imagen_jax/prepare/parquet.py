"""Captioned pictures in .parquet tables, as img2dataset and Hugging Face datasets write them.

A row holds the encoded picture, as bytes or a struct with "bytes", and its text; a list of texts is several captions.
In tables of img2dataset, rows with another status than "success" were not downloaded.

The library `datasets` was tried instead: it stops at the first file or row group that is damaged or has another schema,
failing 16 of the 36 cases of tables in the tests, and decompresses a page of any size.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from imagen_jax.prepare import captions, listing, parquet_pages, parquet_types
from imagen_jax.prepare.captions import CAPTIONS
from imagen_jax.prepare.limits import Limits
from imagen_jax.prepare.parts import Part
from imagen_jax.prepare.pictures import Found
from imagen_jax.prepare.quarantine import LeftOut, Unusable
from imagen_jax.storage import input_files

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img")
PART = 1024  # smallest number of rows of a part, except the last; a row group is never cut
MAX_ROWS = 2**20  # in a row group
MAX_TEXTS = 2**23  # in a row group
TEXT_BYTES = 2**27  # in a row group: as a dictionary they take four times as much
DICTIONARY_BYTES = 2**27  # of pictures in a row group, if they are dictionary-encoded
_FOOTER = 2**26  # bytes
# Raised by Arrow for damage and for unknown features, such as a codec.
_ARROW = (OSError, ValueError, ArithmeticError, NotImplementedError, LookupError, TypeError)
_FEW, _MANY = 16, 1024  # rows whose texts are in memory at once; many if each batch copies a large dictionary


class _NoColumnError(ValueError):
    """A table lacks a column of pictures or captions, or has two of one name."""


class Columns(NamedTuple):
    """Names of the columns that may hold pictures and captions, the likeliest first."""

    images: tuple[str, ...]
    captions: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Tables:
    """Parquet files in a folder. The keys, if given, are the names of the columns.

    Contents of a part: (file, row groups, number of the first row).
    """

    root: Path
    image_key: str | None = None
    caption_key: str | None = None
    limits: Limits = Limits()

    def plan(self, files: list[str]) -> tuple[list[Part], list[LeftOut]]:
        """Return the row groups of `files` in parts, and the files without a readable footer or the columns.

        Raises:
          ValueError: no file with rows has the columns of pictures and captions.
        """
        parts, left_out, without = [], [], []
        for file in files:
            try:
                metadata = _metadata(self.root / file)
                rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
                if any(rows):
                    self.columns(metadata.schema.to_arrow_schema(), file)
            except _NoColumnError as error:
                without.append(error)
                left_out.append(LeftOut(file, "no column", f"no row is read: {error}"))
            except Exception as error:  # Arrow raises many kinds for damage
                left_out.append(_damage(error, file, "no row is read"))
            else:
                parts += _parts(file, rows)
        if without and not parts:
            raise without[0]
        return parts, left_out

    def columns(self, schema, file: str) -> Columns:
        """Return the columns of pictures and of captions; raise ValueError if one is missing or ambiguous."""
        kinds = {field.name: parquet_types.storage(field.type) for field in schema}
        found = []
        for option, what, key, usual, holds in (
            ("--image-key", "pictures", self.image_key, IMAGES, parquet_types.holds_pictures),
            ("--caption-key", "captions", self.caption_key, CAPTIONS, self._holds_captions),
        ):
            names = (key,) if key else usual
            found.append(tuple(name for name in captions.columns(kinds, names) if holds(kinds[name])))
            if not found[-1]:
                raise _NoColumnError(
                    f"{self.root / file} must have a column of {what} called {' or '.join(names)}; got "
                    f"{listing.told(kinds)}: name the right one with {option}."
                )
        for name in (*found[0], *found[1]):
            if (num := schema.names.count(name)) > 1:
                raise _NoColumnError(
                    f"{self.root / file} must have one column called {name}; got {num}: rename all but one."
                )
        return Columns(*found)

    def _holds_captions(self, kind) -> bool:
        # Bytes, in tables that have no type for text, are read only where the key names them.
        return parquet_types.holds_text(kind) or (self.caption_key and parquet_types.holds_bytes(kind))

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        file, groups, row = part.what
        try:
            with input_files.open_file(self.root / file) as opened:
                metadata = _metadata(self.root / file)
                schema = metadata.schema.to_arrow_schema()
                columns = self.columns(schema, file)
                status = _status(schema.names)
                for number in groups:
                    group = metadata.row_group(number)
                    end = row + group.num_rows
                    try:
                        batches, texts = self._check(opened, group, schema, columns, status)
                        for values in _rows(self.root / file, metadata, number, batches, texts):
                            yield self._found(f"{file}:{row}", columns, status, values)
                            row += 1
                    except Unusable as error:
                        detail = f"rows {row} to {end - 1} are not read: {error.detail}"
                        yield LeftOut(f"{file}:{row}", error.reason, detail)
                    except _ARROW as error:
                        yield _damage(error, f"{file}:{row}", f"rows {row} to {end - 1} are not read")
                    row = end
        except _ARROW as error:
            yield _damage(error, f"{file}:{row}", f"no row from {row} on is read")

    def _check(self, file, group, schema, columns: Columns, status: list[str]) -> tuple[dict, list]:
        """Return how many rows of each column of a row group to read at once, and which columns as dictionaries.

        Raises:
          Unusable: the row group is beyond a limit.
        """
        if group.num_rows > MAX_ROWS:
            raise Unusable("too large", f"{group.num_rows} rows in a row group, more than {MAX_ROWS}")
        fix = "write the table with smaller row groups"
        texts = parquet_pages.look(file, group, [*columns.captions, *status])
        if texts.total > TEXT_BYTES or texts.values > MAX_TEXTS:
            num, limit = f"{texts.values} texts of {texts.total} bytes", f"{MAX_TEXTS} or {TEXT_BYTES} bytes"
            raise Unusable("too large", f"{num} in a row group, more than {limit}: {fix}")
        many = _MANY if texts.as_dictionary else 1
        batches = dict.fromkeys((*columns.captions, *status), many if texts.largest > 2**22 else _FEW)
        for column in columns.images:
            pages = parquet_pages.look(file, group, [column])
            is_dictionary = parquet_types.is_dictionary(schema.field(column).type)
            if pages.cost > (most := self.limits.page_bytes):
                sizes = f"a page of {pages.largest} bytes, which takes {pages.cost} bytes of memory, more than {most}"
                raise Unusable("too large", f"{sizes}: {fix}, or raise --max-page-bytes")
            if is_dictionary and pages.total > DICTIONARY_BYTES:
                most = f"{pages.total} bytes of pictures in a dictionary, more than {DICTIONARY_BYTES}"
                raise Unusable("too large", f"{most}: {fix}, or the pictures as plain bytes")
            batches[column] = _MANY if is_dictionary else 1
        return batches, [*columns.captions, *status] if texts.as_dictionary else []

    def _found(self, where: str, columns: Columns, status: list[str], values: dict) -> Found | LeftOut:
        try:
            for name in status:
                if (state := parquet_types.value_of(values[name])) != "success":
                    raise Unusable("download failed", f"status {str(state)[:100]}")
            texts = (self._texts(values[name]) for name in columns.captions)
            given = next((found for found in texts if not captions.is_empty(found)), ())
            pictures = (parquet_types.picture_bytes(values[name]) for name in columns.images)
            picture = next(filter(None, pictures), None)
            if picture is None:
                raise Unusable("no picture", "no bytes in this row")
            self.limits.check_image(picture.size)
            return Found(where, picture.to_pybytes(), tuple(text for text in given if text is not None))
        except Unusable as error:
            return error.of(where)

    def _texts(self, scalar) -> list[str | None]:
        scalar = parquet_types.plain(scalar)
        values = getattr(scalar, "values", None)  # of a list
        if values is None:
            return [self._text(scalar)]
        if len(values) > self.limits.captions:
            values = values.unique()
        if len(values) > self.limits.captions:
            raise Unusable("too many captions", f"{len(values)}, more than {self.limits.captions}")
        return [self._text(parquet_types.plain(value)) for value in values]

    def _text(self, scalar) -> str | None:
        if not scalar.is_valid:
            return None
        if (num := scalar.as_buffer().size) > self.limits.caption_bytes:
            raise Unusable("caption too long", f"{num} bytes, more than {self.limits.caption_bytes}")
        try:
            value = scalar.as_py()
            return value.decode("utf-8") if isinstance(value, bytes) else value
        except UnicodeDecodeError as error:
            raise Unusable("unreadable caption", f"not UTF-8: {error}") from error


def holds_pictures(path: Path, image_key: str | None) -> bool:
    """Whether a file is a table of pictures; True if it cannot be read."""
    try:
        schema = _metadata(path).schema.to_arrow_schema()
        kinds = {field.name: parquet_types.storage(field.type) for field in schema}
    except Exception:
        return True
    names = captions.columns(kinds, (image_key,) if image_key else IMAGES)
    return any(parquet_types.holds_pictures(kinds[name]) for name in names)


def _metadata(path: Path):
    """Return the footer of a table; raise an error if it is damaged or too large."""
    import pyarrow.parquet

    with input_files.open_file(path) as file:
        if file.seek(0, os.SEEK_END) >= 8:
            file.seek(-8, os.SEEK_END)
            if (num := int.from_bytes(file.read(4), "little")) > _FOOTER and file.read(4) == b"PAR1":
                raise OverflowError(f"its footer has {num} bytes, more than {_FOOTER}")
    return pyarrow.parquet.read_metadata(path)


def _rows(path: Path, metadata, group: int, batches: dict[str, int], texts: list[str]) -> Iterator[dict]:
    """Yield the values of each row of a row group by column.

    Memory holds the pages of the row, its pictures and the texts of a batch: each distinct text once, if they are read
    as a dictionary.
    """
    import pyarrow.parquet

    leaves = [metadata.row_group(group).column(i).path_in_schema for i in range(metadata.num_columns)]
    dictionary = [
        leaf for leaf in leaves if any(leaf == name or leaf.startswith(f"{name}.") for name in texts)
    ]
    # Without memory maps, threads and reading ahead, memory holds a batch and its pages.
    options = {"buffer_size": 2**20, "pre_buffer": False, "metadata": metadata}

    def values(num: int) -> Iterator[dict]:
        names = [name for name, those in batches.items() if those == num]
        # A file for each: all iterators over one have the same size of batches, that of the last.
        with pyarrow.parquet.ParquetFile(path, read_dictionary=dictionary, **options) as table:
            for batch in table.iter_batches(num, [group], names, use_threads=False):
                columns = [batch.column(name) for name in names]
                yield from (dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True))

    for rows in zip(*map(values, set(batches.values())), strict=True):
        yield {name: value for row in rows for name, value in row.items()}


def _damage(error: Exception, where: str, lost: str) -> LeftOut:
    """Return what is left out where Arrow fails, which raises OSError without a number for damage."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, input_files.NoFileError) or (isinstance(error, OSError) and error.errno is not None):
        return listing.unreadable(error, where)
    return LeftOut(where, "damaged archive", f"{lost}: {error}")


def _status(names: list[str]) -> list[str]:
    """Return the column of download results of a table of img2dataset; elsewhere "status" has another meaning."""
    return ["status"] if "status" in names and {"error_message", "key"} & set(names) else []


def _parts(file: str, rows: list[int]) -> Iterator[Part]:
    """Yield neighbouring row groups, of so many rows each, in parts of at least PART rows except the last."""
    groups, num = [], 0
    for group, num_rows in enumerate(rows):
        groups, num = [*groups, group], num + num_rows
        if num >= PART or (num and group == len(rows) - 1):
            first = sum(rows[: groups[0]])
            yield Part(f"{file}, row {first} and on", num, (file, tuple(groups), first))
            groups, num = [], 0
