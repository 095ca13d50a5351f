"""Sizes of the pages of a .parquet table, which reading a column decompresses as a whole.

Arrow reports only the sizes in the footer, which may be wrong, and no sizes of pages. These are in the page headers:
Thrift structs in the compact protocol, see https://github.com/apache/parquet-format and
https://github.com/apache/thrift/blob/master/doc/specs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import BinaryIO

_COPIES = 7  # copies of a value that Arrow makes while it reads one row
_MOST = 2**17  # pages of a column
_DEPTH = 20  # nested structs in a header
_TRUE, _FALSE, _I8, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)
_PLAIN = 0
_AS_DICTIONARY = {_PLAIN, 2, 8}  # and PLAIN_DICTIONARY and RLE_DICTIONARY
# Numbers of fields in PageHeader
_SIZE, _COMPRESSED, _DATA, _DICTIONARY, _DATA_V2 = 2, 3, 5, 7, 8
_KINDS = {_DATA: 2, _DICTIONARY: 2, _DATA_V2: 4}  # and the number of the encoding in each


@dataclasses.dataclass
class Pages:
    """Pages of some columns of a row group."""

    largest: int = 0  # bytes of the largest page, decompressed
    total: int = 0  # bytes of all pages, decompressed
    cost: int = 0  # bytes of memory that reading one row takes: a page and _COPIES of the mean value in it
    values: int = 0  # of the longest column
    as_dictionary: bool = True  # whether all columns can be read as dictionaries; not with some encodings


def look(file: BinaryIO, group, columns: list[str]) -> Pages:
    """Return the pages of top-level columns of a row group, of which `group` is pyarrow's RowGroupMetaData.

    It ends before the first header that cannot be read: Arrow fails there too.
    """
    found = Pages()
    for column in map(group.column, range(group.num_columns)):
        path, values = column.path_in_schema, 0
        if not any(path == name or path.startswith(f"{name}.") for name in columns):
            continue
        for size, num, encoding, is_dictionary in _headers(file, column):
            found.largest, found.total = max(found.largest, size), found.total + size
            found.cost = max(found.cost, size + _COPIES * size // max(num, 1))
            if not is_dictionary:
                values += num
                found.as_dictionary &= encoding in _AS_DICTIONARY
        found.values = max(found.values, values)
    return found


def _headers(file: BinaryIO, column) -> Iterator[tuple[int, int, int, bool]]:
    """Yield (bytes, values, encoding, whether it is the dictionary) of each page of a column chunk."""
    start = column.data_page_offset
    if column.has_dictionary_page and column.dictionary_page_offset is not None:
        start = min(start, column.dictionary_page_offset)
    end = start + column.total_compressed_size
    values = num_pages = 0
    file.seek(start)
    while file.tell() < end and values < column.num_values:
        num_pages += 1
        if num_pages > _MOST:
            raise OverflowError(f"a column of more than {_MOST} pages")
        try:
            header = _struct(file)
            size, compressed = header[_SIZE], header[_COMPRESSED]
            kind, place = next((kind, place) for kind, place in _KINDS.items() if kind in header)
            num, encoding = header[kind][1], header[kind][place]
            if min(size, compressed, num) < 0:
                return
        except (KeyError, EOFError, StopIteration, TypeError):
            return
        values += 0 if kind == _DICTIONARY else num
        yield size, num, encoding, kind == _DICTIONARY
        file.seek(compressed, 1)


def _struct(file: BinaryIO, depth: int = 0) -> dict:
    """Return the fields of a struct by their numbers: integers and structs; others are skipped."""
    if depth > _DEPTH:
        raise EOFError
    fields, number = {}, 0
    while kind := _byte(file):
        step, kind = kind >> 4, kind & 15
        number = number + step if step else _zigzag(file)
        fields[number] = _value(file, kind, depth)
    return fields


def _value(file: BinaryIO, kind: int, depth: int):
    if kind in (_TRUE, _FALSE):
        return kind == _TRUE
    if kind == _I8:
        return _byte(file)
    if kind in (_I16, _I32, _I64):
        return _zigzag(file)
    if kind == _STRUCT:
        return _struct(file, depth + 1)
    if kind not in (_DOUBLE, _BINARY):  # a page header has neither lists nor maps
        raise EOFError
    file.seek(8 if kind == _DOUBLE else _varint(file), 1)
    return None


def _zigzag(file: BinaryIO) -> int:
    value = _varint(file)
    return (value >> 1) ^ -(value & 1)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = _byte(file)
        value |= (byte & 127) << shift
        if byte < 128:
            return value
    raise EOFError


def _byte(file: BinaryIO) -> int:
    if not (read := file.read(1)):
        raise EOFError
    return read[0]
