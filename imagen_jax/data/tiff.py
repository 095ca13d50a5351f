"""Reduction of a TIFF to its first directory and the fields that decoding needs."""

from __future__ import annotations

import struct

from imagen_jax.data.containers import MAX_PROFILE, Contents, TooLargeError

MAX_STRIPS = 2**18  # strips or tiles of a picture
_MAX_VALUES = 2**12  # values of any other numeric tag
_PROFILE = 34675
_OFFSETS = (273, 279, 324, 325)
_TABLES = (320, 347)  # ColorMap, JPEGTables
_NUMBERS = (
    256, 257, 258, 259, 262, 266, 274, 277, 278, 280, 281, 284, 292, 293, 317, 322, 323, 332, 334, 338, 339, 340, 341,
    512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532,
)  # fmt: skip
# Bytes of a value of each type.
_BYTES = dict(zip((*range(1, 14), 16, 17, 18), (1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 8, 8, 8), strict=True))
_CODES = {1: "B", 3: "H", 4: "I", 16: "Q"}


def contents(data: bytes) -> Contents:
    """Return the TIFF with only its first directory, reduced to the fields that decoding needs, and its profile.

    Raises:
      TooLargeError: it has too many tags, strips or tiles.
      ValueError, struct.error: it is broken.
    """
    order = {b"II": "<", b"MM": ">"}[data[:2]]
    is_big = 43 in data[2:4]
    count_code, entry, offset_code = ("Q", struct.Struct(f"{order}HHQ8s"), "Q") if is_big else (
        "H", struct.Struct(f"{order}HHI4s"), "I",
    )  # fmt: skip
    room = struct.calcsize(offset_code)
    (start,) = struct.unpack_from(order + offset_code, data, 8 if is_big else 4)
    (num,) = struct.unpack_from(order + count_code, data, start)
    first = start + struct.calcsize(count_code)
    if num > _MAX_VALUES:
        raise TooLargeError(f"{num} tags, more than {_MAX_VALUES}")
    kept, values, profile = [], {}, None
    for place in range(first, first + num * entry.size, entry.size):
        tag, kind, count, value = entry.unpack_from(data, place)
        size = count * _BYTES.get(kind, 1)
        if tag in _OFFSETS and count > MAX_STRIPS:
            raise TooLargeError(f"{count} strips or tiles, more than {MAX_STRIPS}")
        if tag == _PROFILE and 128 <= size <= MAX_PROFILE:
            (offset,) = struct.unpack(order + offset_code, value)
            profile = data[offset : offset + size]
        if (
            tag in _OFFSETS
            or (tag in _TABLES and size <= 2**20)
            or (tag in _NUMBERS and count <= _MAX_VALUES)
        ):
            kept.append(data[place : place + entry.size])
        if tag in _NUMBERS and kind in _CODES and size <= room:
            values[tag] = struct.unpack_from(order + _CODES[kind], value)[0]
    reduced = bytearray(data)
    end = first + len(kept) * entry.size
    struct.pack_into(order + count_code, reduced, start, len(kept))
    reduced[first:end] = b"".join(kept)
    reduced[end : end + room] = bytes(room)  # no next directory
    return Contents(bytes(reduced), profile, scratch=_scratch(values))


def _scratch(values: dict[int, int]) -> int:
    """Return the bytes of the strip or tile that libtiff decodes at once."""
    width, height = values.get(256, 0), values.get(257, 0)
    if 322 in values and 323 in values:
        width, height = values[322], values[323]
    else:
        height = min(height, values.get(278, height))
    return width * height * values.get(277, 1) * ((values.get(258, 16) + 7) // 8)
