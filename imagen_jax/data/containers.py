"""Metadata of a PNG, JPEG, GIF or WebP: parsed here within limits and hidden from the decoder.

Pillow reads all text, profiles, EXIF data and comments when it opens a picture: it refuses valid pictures with long
text, and takes gigabytes or minutes for hostile ones. So pictures are opened without metadata, and the colour profile
and the orientation are taken from the bytes.
"""

from __future__ import annotations

import dataclasses
import re
import struct
import zlib
from collections.abc import Iterator

from imagen_jax.data import profiles
from imagen_jax.data.profiles import BrokenError

MAX_CHUNKS = 2**18  # chunks of a PNG; blocks of a GIF before its first picture
MAX_SEGMENTS = 2**16  # segments before the pixels of a JPEG; chunks of a WebP
MAX_SCANS = 100  # passes over the pixels of a JPEG; encoders make about ten
MAX_PROFILE = 2**22  # bytes of a colour profile; a larger one is not applied
_MAX_TEXT = 2**20  # bytes of XMP that are searched for the orientation

_SEGMENT = struct.Struct(">BBH").unpack_from
_NO_LENGTH = (0, *range(0xD0, 0xDA), 0xFF)  # markers of a JPEG; the last is fill
_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([1-8])")


@dataclasses.dataclass
class Contents:
    """A picture without its metadata."""

    data: bytes  # for the decoder
    profile: bytes | None = None  # ICC
    orientation: int | None = None  # EXIF's, 1 to 8; None: read by the decoder
    has_frames: bool = False  # more pictures than the first
    depth: int = 8  # bits of a channel of a PNG
    has_passes: bool = False  # over all pixels, as in a progressive JPEG
    size: tuple[int, int] | None = None  # width and height, where opening alone allocates memory for them
    scratch: int = 0  # bytes that the decoder needs in addition to those per pixel


class TooLargeError(ValueError):
    """A picture would take too much memory or time; the message is the reason without its name."""


def exif_orientation(exif: bytes) -> int | None:
    """Return the orientation, 1 to 8, in the first directory of EXIF data; None if there is none."""
    exif = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    try:
        (start,) = struct.unpack_from(f"{order}I", exif, 4)
        (num,) = struct.unpack_from(f"{order}H", exif, start)
        for place in range(start + 2, start + 2 + 12 * num, 12):
            tag, kind, count = struct.unpack_from(f"{order}HHI", exif, place)
            if tag == 0x0112 and count == 1 and kind in (3, 4):
                (value,) = struct.unpack_from(order + "_HI"[kind - 2], exif, place + 8)
                return value if 1 <= value <= 8 else None
    except struct.error:
        pass
    return None


def xmp_orientation(xmp: bytes) -> int | None:
    found = _ORIENTATION.search(xmp, 0, _MAX_TEXT)
    return int(found[1]) if found else None


def _inflated(data: bytes | memoryview, most: int) -> bytes:
    """Decompress at most `most` bytes; return b"" if the data are broken."""
    try:
        return zlib.decompressobj().decompress(data, most)
    except zlib.error:
        return b""


def png(data: bytes) -> Contents:
    # The usual case: a header, one chunk of pixels, and the end.
    if data[37:41] == b"IDAT" and len(data) == 57 + int.from_bytes(data[33:37], "big"):
        return Contents(data, orientation=1, depth=data[24])
    view = memoryview(data)
    kept, pixels = [view[:8]], []
    found: dict[bytes, bytes] = {}
    orientations: list[int | None] = [None, None]  # of EXIF data, which have priority, and of XMP
    for kind, start, end in _png_chunks(data):
        if kind == b"IDAT":
            pixels.append(view[start:end])
        elif kind in (b"PLTE", b"tRNS") or (kind == b"IHDR" and len(kept) == 1):
            kept.append(view[start - 8 : end + 4])
        elif kind in (b"iCCP", b"cICP", b"sRGB", b"gAMA", b"cHRM", b"acTL"):
            found.setdefault(kind, data[start : min(end, start + MAX_PROFILE)])
        elif kind == b"eXIf":
            orientations[0] = orientations[0] or exif_orientation(data[start:end])
        elif kind in (b"iTXt", b"zTXt", b"tEXt"):
            place, orientation = _png_text(kind, view[start:end])
            orientations[place] = orientations[place] or orientation
    # Join the chunks of pixels: the decoder reads each chunk separately.
    length = struct.pack(">I", sum(map(len, pixels)))
    flat = [*kept, length, b"IDAT", *pixels, b"\0\0\0\0", b"\0\0\0\0IEND\xae\x42\x60\x82"]
    return Contents(
        data if sum(map(len, flat)) == len(data) else b"".join(flat),
        profile=_png_profile(found, data),
        orientation=orientations[0] or orientations[1] or 1,
        has_frames=b"acTL" in found,
        depth=data[24],
    )


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start, end) of the content of each chunk, up to the end of a truncated picture."""
    place = 8
    unpack = struct.Struct(">I4s").unpack_from
    for _ in range(MAX_CHUNKS):
        if place + 8 > len(data):
            return
        length, kind = unpack(data, place)
        start, place = place + 8, place + 12 + length
        if kind == b"IEND" or not kind.isalpha():
            return
        yield kind, start, min(start + length, len(data))
    raise TooLargeError(f"more than {MAX_CHUNKS} chunks")


def _png_text(kind: bytes, text: memoryview) -> tuple[int, int | None]:
    """Return (0 for EXIF data or 1 for XMP, the orientation) of a text chunk."""
    key, _, rest = bytes(text[:100]).partition(b"\0")
    body = text[len(key) + 1 :]
    if key == b"XML:com.adobe.xmp" and kind == b"iTXt":
        is_packed = bytes(body[:1]) == b"\1"
        head = bytes(body[2:1000]).split(b"\0", 2)
        if len(head) < 3:
            return 1, None
        body = body[4 + len(head[0]) + len(head[1]) :]
        return 1, xmp_orientation(_inflated(body, _MAX_TEXT) if is_packed else bytes(body[:_MAX_TEXT]))
    if key in (b"Raw profile type exif", b"Raw profile type APP1") and kind in (b"zTXt", b"tEXt"):
        plain = _inflated(body[1:], _MAX_TEXT) if kind == b"zTXt" else bytes(body[:_MAX_TEXT])
        try:
            return 0, exif_orientation(bytes.fromhex("".join(plain.decode("latin-1").split("\n")[3:])))
        except ValueError:
            pass
    return 0, None


def _png_profile(found: dict[bytes, bytes], data: bytes) -> bytes | None:
    """Return the profile of a PNG by the priority of its specification: cICP, iCCP, sRGB, gAMA with cHRM."""
    is_grey = data[25] in (0, 4)
    if len(code := found.get(b"cICP", b"")) == 4 and code[2] == 0:
        return profiles.from_code_points(code[0], code[1], is_grey=is_grey)
    if b"iCCP" in found:
        _, _, packed = found[b"iCCP"].partition(b"\0")
        profile = _inflated(packed[1:], MAX_PROFILE)
        return profile if 128 <= len(profile) < MAX_PROFILE else None
    if b"sRGB" in found or len(found.get(b"gAMA", b"")) != 4:
        return None
    (gamma,) = struct.unpack(">I", found[b"gAMA"])
    primaries = found.get(b"cHRM", b"")
    primaries = [value / 1e5 for value in struct.unpack(">8I", primaries)] if len(primaries) == 32 else None
    return profiles.from_gamma(gamma / 1e5, primaries, is_grey=is_grey)


def jpeg(data: bytes) -> Contents:
    view = memoryview(data)
    kept, parts = [], {}
    exif = xmp = None
    has_passes = has_frames = False
    channels = 0
    first = 0  # offset of the bytes that are kept next
    place = 2
    for _ in range(MAX_SEGMENTS):
        start_byte, kind, length = _SEGMENT(data, place)
        if start_byte != 0xFF or kind in _NO_LENGTH:  # bytes between segments are dropped
            behind = place + (1 if start_byte != 0xFF or kind == 0xFF else 2)
            kept.append(view[first:place])
            first = place = data.find(b"\xff", behind)
            if place < 0:
                raise BrokenError("cut off before the picture")
            continue
        if kind == 0xDA:
            has_passes = has_passes or data[place + 4] < channels  # one channel after the other
            break
        start, end = place + 4, place + 2 + length
        if kind < 0xE0:
            has_passes = has_passes or kind in (0xC2, 0xC6, 0xCA, 0xCE)
            if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                channels = data[start + 5]
            place = end
            continue
        if kind == 0xE1 and exif is None and data.startswith(b"Exif\0\0", start):
            exif = data[start:end]
        elif kind == 0xE1 and xmp is None and data.startswith(b"http://ns.adobe.com/xap/1.0/\0", start):
            xmp = data[start:end]
        elif kind == 0xE2 and data.startswith(b"ICC_PROFILE\0", start):
            parts.setdefault(data[start + 12], data[start + 14 : end])
        elif kind == 0xE2 and data.startswith(b"MPF\0", start):
            has_frames = True
        # JFIF and Adobe segments determine the colours of the channels.
        if kind not in (0xE0, 0xEE) or data[start : start + 5] not in (b"JFIF\0", b"Adobe"):
            kept.append(view[first:place])
            first = end
        place = end
    else:
        raise TooLargeError(f"more than {MAX_SEGMENTS} segments")
    if has_passes and data.count(b"\xff\xda", place) > MAX_SCANS:
        raise TooLargeError(f"more than {MAX_SCANS} scans")
    profile = b"".join(part for _, part in sorted(parts.items()))
    return Contents(
        b"".join((*kept, view[first:])) if first else data,
        profile=profile if 128 <= len(profile) <= MAX_PROFILE else None,
        orientation=(exif and exif_orientation(exif)) or (xmp and xmp_orientation(xmp)) or 1,
        has_frames=has_frames,
        has_passes=has_passes,
    )


def gif(data: bytes) -> Contents:
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    header = data[:place]
    control, parts = b"", []
    is_profile, num_bytes = False, 0
    blocks = iter(range(MAX_CHUNKS))
    for _ in blocks:  # extensions are blocks of up to 255 bytes after two bytes, ended by an empty one
        kind = data[place : place + 1]
        if kind == b",":
            profile = b"".join(parts)
            kept = b"".join((header, control, memoryview(data)[place:]))
            return Contents(kept, profile if 128 <= len(profile) <= MAX_PROFILE else None, 1)
        if kind == b"!":
            if data[place + 1] == 0xF9 and data[place + 2] == 4:
                control = data[place : place + 8]
            is_profile = data[place + 1] == 0xFF and data.startswith(b"\x0bICCRGBG1012", place + 2)
            place += 14 if is_profile else 2
            for _ in blocks:
                size = data[place]
                if is_profile and num_bytes <= MAX_PROFILE:
                    parts.append(data[place + 1 : place + 1 + size])
                    num_bytes += size
                place += 1 + size
                if size == 0:
                    break
            else:
                raise TooLargeError(f"more than {MAX_CHUNKS} blocks")
        elif kind in (b";", b""):
            raise BrokenError("without a picture")
        else:
            place += 1
    raise TooLargeError(f"more than {MAX_CHUNKS} blocks")


def webp(data: bytes) -> Contents:
    found = Contents(data, orientation=1)
    place = 12
    for _ in range(MAX_SEGMENTS):
        if place + 8 > len(data):
            return found
        kind, length = struct.unpack_from("<4sI", data, place)
        start, end = place + 8, place + 8 + length
        if kind == b"VP8X" and found.size is None:
            width, height = (int.from_bytes(data[start + at : start + at + 3], "little") + 1 for at in (4, 7))
            found.size = width, height
        elif kind == b"ICCP" and 128 <= length <= MAX_PROFILE:
            found.profile = found.profile or data[start:end]
        elif kind == b"EXIF":
            found.orientation = exif_orientation(data[start:end]) or found.orientation
        elif kind == b"XMP " and found.orientation == 1:
            found.orientation = xmp_orientation(data[start:end]) or 1
        elif kind == b"ANMF":
            found.has_frames = True
        place = end + length % 2
    raise TooLargeError(f"more than {MAX_SEGMENTS} chunks")
