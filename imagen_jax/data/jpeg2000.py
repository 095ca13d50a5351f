"""Headers of JPEG 2000 pictures: the memory and time that decoding needs, by the code stream."""

from __future__ import annotations

import struct

from imagen_jax.data.containers import MAX_PROFILE, MAX_SEGMENTS, Contents, TooLargeError
from imagen_jax.data.profiles import BrokenError

START = b"\xff\x4f\xff\x51"  # SOC, SIZ
_MIN_BLOCK = 8  # log2 of the pixels of a code block; encoders make 12 or 10
_MIN_PRECINCT = 5  # log2 of the sides of a precinct
_TILE_BYTES = 10240  # OpenJPEG's tables for a tile


def contents(data: bytes) -> Contents:
    """Return the picture with its profile, its size in the code stream and the scratch memory of its decoder.

    Raises:
      TooLargeError: it has too many tiles, or far smaller blocks than encoders make.
      BrokenError, struct.error: it is broken.
    """
    profile, place = None, 0
    if not data.startswith(START):
        profile, place = _boxes(data)
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, channels = struct.unpack_from(">8IH", data, place + 8)
    if not (tile_x and tile_y and x1 > x0 and y1 > y0):
        raise BrokenError("an empty picture")
    tiles = -(-(x1 - tile_x0) // tile_x) * -(-(y1 - tile_y0) // tile_y)
    if tiles > MAX_SEGMENTS:
        raise TooLargeError(f"{tiles} tiles, more than {MAX_SEGMENTS}")
    _check_blocks(data, place + 2, 1 if channels < 257 else 2)
    return Contents(data, profile, 1, size=(x1 - x0, y1 - y0), scratch=tiles * _TILE_BYTES)


def _boxes(data: bytes) -> tuple[bytes | None, int]:
    """Return (ICC profile, offset of the code stream)."""
    profile, place, end = None, 0, len(data)
    for _ in range(MAX_SEGMENTS):
        if place + 8 > end:
            break
        length, kind = struct.unpack_from(">I4s", data, place)
        header = 8
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, place + 8)
            header = 16
        length = length or end - place
        if length < header:
            break
        if kind == b"jp2c":
            return profile, place + header
        if kind == b"colr" and data[place + header] == 2 and 128 <= length <= MAX_PROFILE:
            profile = profile or data[place + header + 3 : place + length]
        place += header if kind == b"jp2h" else length  # descend into the header, skip the others
    else:
        raise TooLargeError(f"more than {MAX_SEGMENTS} boxes")
    raise BrokenError("without a code stream")


def _check_blocks(data: bytes, place: int, channel_bytes: int) -> None:
    """Check the markers from SIZ on, including the headers of all tile parts."""
    start = part = 0  # offset and length of the current tile part
    for _ in range(2 * MAX_SEGMENTS):
        if place + 4 > len(data):
            return
        marker, length = struct.unpack_from(">HH", data, place)
        if marker == 0xFF90:  # SOT
            start, (part,) = place, struct.unpack_from(">I", data, place + 6)
        elif marker == 0xFF93:  # SOD: coded pixels up to the next part
            if part < 14:
                return
            place = start + part
            continue
        elif marker == 0xFFD9:
            return
        elif marker == 0xFF52:
            _check_style(data[place + 4], data[place + 9 : place + 2 + length])
        elif marker == 0xFF53:
            at = place + 4 + channel_bytes
            _check_style(data[at], data[at + 1 : place + 2 + length])
        place += 2 + max(length, 2)
    raise TooLargeError(f"more than {2 * MAX_SEGMENTS} markers")


def _check_style(has_precincts: int, style: bytes) -> None:
    """`style`: levels, code block's width and height, two bytes, sizes of precincts."""
    if (style[1] & 15) + (style[2] & 15) + 4 < _MIN_BLOCK:
        raise TooLargeError(f"code blocks of fewer than {2**_MIN_BLOCK} pixels")
    if has_precincts & 1 and any(min(size & 15, size >> 4) < _MIN_PRECINCT for size in style[5:]):
        raise TooLargeError(f"precincts of fewer than {2**_MIN_PRECINCT} pixels a side")
