"""Captioned pictures in .parquet tables, as img2dataset and Hugging Face datasets write them.

A row holds the encoded picture, as bytes or as a struct with "bytes", and its text; a list of texts
is several captions. In tables of img2dataset, rows of another status than "success" were not
downloaded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

from imagen_jax.data import listing
from imagen_jax.data.captions import CAPTIONS
from imagen_jax.data.parts import Part
from imagen_jax.data.pictures import Found
from imagen_jax.data.quarantine import LeftOut, Unusable

IMAGES = ("image", "jpg", "jpeg", "png", "webp", "img")
PART = 1024  # rows from which on a part is large enough; a row group is never cut
_BATCH = 16  # rows in memory at once


@dataclasses.dataclass(frozen=True)
class Tables:
    """Parquet files in a folder. The keys, if given, are the names of the columns.

    What is in a part: (file, row groups, row number of the first).
    """

    root: Path
    image_key: str | None = None
    caption_key: str | None = None

    def plan(self, files: list[str]) -> tuple[list[Part], list[LeftOut]]:
        """The row groups of `files` in parts; a file without a readable footer is left out.

        Raises:
          ValueError: a file lacks the column of the pictures or of the captions.
        """
        import pyarrow.parquet

        parts, left_out = [], []
        for file in files:
            try:
                metadata = pyarrow.parquet.read_metadata(self.root / file)
                schema = metadata.schema.to_arrow_schema()
            except Exception as error:  # whatever Arrow makes of damage
                left_out.append(_damage(error, file, "no row is read"))
                continue
            self.columns(schema, file)
            rows = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            for groups in _gathered(rows):
                first, num = sum(rows[: groups[0]]), sum(rows[i] for i in groups)
                parts.append(Part(f"{file}, row {first} and on", num, (file, groups, first)))
        return parts, left_out

    def columns(self, schema, file: str) -> tuple[str, str]:
        """The names of the columns of pictures and of captions; raises ValueError if one is missing."""
        kinds = {field.name: field.type for field in schema}
        chosen = []
        for what, key, names, fits in (
            ("pictures", self.image_key, IMAGES, _holds_pictures),
            ("captions", self.caption_key, CAPTIONS, _holds_text),
        ):
            wanted = (key,) if key else names
            column = next((name for name in wanted if name in kinds and fits(kinds[name])), None)
            if what == "captions" and column is None and key in kinds and _is_bytes(kinds[key]):
                column = key  # text of a table that has no type for it
            if column is not None and (num := schema.names.count(column)) > 1:
                raise ValueError(f"{self.root / file} has {num} columns called {column}: rename all but one.")
            if column is None:
                have = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
                if what == "captions" and not any(map(_holds_text, kinds.values())):
                    raise ValueError(f"{self.root / file} has no text at all; its columns are: {have}.")
                option = "--image-key" if what == "pictures" else "--caption-key"
                raise ValueError(
                    f"{self.root / file} has no column of {what} called {' or '.join(wanted)}; it has: {have}. "
                    f"Name the right one with {option}."
                )
            chosen.append(column)
        return tuple(chosen)

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        import pyarrow.parquet

        file, groups, row = part.what
        # Without memory maps, threads and reading ahead, memory is a batch and the pages it lies in.
        options = {"buffer_size": 2**20, "pre_buffer": False}
        try:
            opened = pyarrow.parquet.ParquetFile(self.root / file, **options)
        except OSError as error:
            yield _damage(error, f"{file}:{row}", f"no row from {row} on is read")
            return
        with opened as table:
            image, caption = self.columns(table.schema_arrow, file)
            names = [image, caption, *_status(table.schema_arrow.names)]
            for group in groups:
                end = row + table.metadata.row_group(group).num_rows
                try:
                    for batch in table.iter_batches(_BATCH, [group], names, use_threads=False):
                        columns = [batch.column(name) for name in names]
                        for values in zip(*columns, strict=True):
                            yield _found(f"{file}:{row}", *values)
                            row += 1
                except (OSError, ValueError, ArithmeticError) as error:  # pyarrow's are among them
                    yield _damage(error, f"{file}:{row}", f"rows {row} to {end - 1} are not read")
                row = end


def holds_pictures(path: Path, image_key: str | None) -> bool:
    """Whether a file is a table with pictures in it; one that cannot be read is taken for one."""
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except Exception:
        return True
    names = (image_key,) if image_key else IMAGES
    return any(name in schema.names and _holds_pictures(schema.field(name).type) for name in names)


def _damage(error: Exception, where: str, lost: str) -> LeftOut:
    """What is left out where Arrow fails. It raises OSError for damage too, but then with no number."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, OSError) and error.errno is not None:
        return listing.unreadable(error, where)
    return LeftOut(where, "damaged archive", f"{lost}: {error}")


def _status(names: list[str]) -> list[str]:
    """The column that says what was downloaded, in a table of img2dataset; others may call anything so."""
    return ["status"] if "status" in names and {"error_message", "key"} & set(names) else []


def _found(where: str, image, caption, status=None) -> Found | LeftOut:
    try:
        if status is not None and (state := _value(status)) != "success":
            raise Unusable("download failed", f"status {state}")
        texts = _value(caption)
        texts = [_text(text) for text in (texts if isinstance(texts, list) else [texts])]
        picture = _value(image)
    except Unusable as error:
        return error.of(where)
    picture = picture.get("bytes") if isinstance(picture, dict) else picture
    if picture is None:
        return LeftOut(where, "no picture", "no bytes in this row")
    return Found(where, picture, tuple(text for text in texts if text is not None))


def _value(scalar):
    try:
        return scalar.as_py()
    except UnicodeDecodeError as error:
        raise Unusable("unreadable caption", f"not UTF-8: {error}") from error


def _text(value: str | bytes | None) -> str | None:
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        raise Unusable("unreadable caption", f"not UTF-8: {error}") from error


def _holds_pictures(kind) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_bytes(kind.field(place).type)
    return _is_bytes(kind)


def _is_bytes(kind) -> bool:
    import pyarrow as pa

    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _holds_text(kind) -> bool:
    import pyarrow as pa

    lists = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
    if any(getattr(pa.types, f"is_{name}")(kind) for name in lists):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _gathered(rows: list[int]) -> Iterator[tuple[int, ...]]:
    """Neighbouring row groups in bundles of PART rows or more (but the last)."""
    bundle: list[int] = []
    for group in range(len(rows)):
        bundle.append(group)
        if sum(rows[i] for i in bundle) >= PART:
            yield tuple(bundle)
            bundle = []
    if bundle:
        yield tuple(bundle)
