"""Opening encoded pictures within limits of bytes, pixels, memory and time."""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import sys
import time

from PIL import Image

from imagen_jax.data import colors, containers, jpeg2000, tiff
from imagen_jax.data.containers import Contents, TooLargeError
from imagen_jax.data.profiles import BrokenError

MAX_PIXELS = 2**27  # cameras have 100 megapixels
MAX_SIDE = 2**18  # pixels; decoders make tables for each row and column
MAX_BYTES = 2**28  # of an encoded picture; a PNG of 100 megapixels of 8 bits has fewer
MAX_MEMORY = 3 * 2**28  # bytes of an encoded and decoded picture; the process itself takes about 150 MB
MAX_SECONDS = 60.0  # of one thread's processor time to decode a picture
# Formats that are tried, whatever the name of the file. Pillow would pass PostScript to another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")

_CONTENTS = {
    "PNG": containers.png,
    "JPEG": containers.jpeg,
    "WEBP": containers.webp,
    "GIF": containers.gif,
    "TIFF": tiff.contents,
    "JPEG2000": jpeg2000.contents,
}
# Bytes of memory for decoding per pixel, in addition to Pillow's picture, and per byte of the file.
_DECODER_PIXEL = {"WEBP": 12, "AVIF": 14, "JPEG2000": 20}
_DECODER_BYTE = {"WEBP": 3, "AVIF": 2}
_PASSES_PIXEL = 6  # of a JPEG in several passes: coefficients of 2 bytes for each of three channels


class UndecodableError(ValueError):
    """Bytes that are not a picture, a truncated or a too large one; or a record that cannot be read.

    `reason` is the message without the name of the record; `kind` is "undecodable" or "too large".
    """

    def __init__(self, message: str, reason: str = "", kind: str = "undecodable"):
        super().__init__(message)
        self.reason = reason or message
        self.kind = kind


@dataclasses.dataclass
class Opened:
    """A picture of which only the headers have been read."""

    image: Image.Image
    contents: Contents
    file: _Watched

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 to 8; 1 for a TIFF, which Pillow rotates when it loads it."""
        if self.image.format == "TIFF":
            return 1
        exif = self.image.info.get("exif", b"")  # of AVIF, to which Pillow adds the format's own property
        return self.contents.orientation or containers.exif_orientation(exif) or 1

    def load(self) -> colors.Reading:
        """Decode the picture; return how its values become colours."""
        self.image.load()
        self.check_time()
        image, contents = self.image, self.contents
        profile = contents.profile or image.info.get("icc_profile")
        if image.mode == "F":
            raise BrokenError("floating-point pictures have no defined white")
        if colors.is_deep(image.mode):
            return colors.Reading(profile, colors.levels(image))
        if image.format == "TIFF" and image.mode in ("RGB", "RGBA"):
            colors.check_high_bytes(image, lambda: low_bytes(contents.data))
        key = image.info.get("transparency")
        if image.format == "PNG" and contents.depth == 16 and image.mode == "RGB" and key is not None:
            del image.info["transparency"]  # of 16 bits, which Pillow would compare with 8
            return colors.Reading(profile, low=low_bytes(contents.data), key=key)
        return colors.Reading(profile)

    def check_time(self) -> None:
        """Raise TooLargeError if decoding has exceeded its time."""
        self.file.check()


class _Watched(io.BytesIO):
    """Bytes that can be read for a limited processor time of this thread, once `watch` was called."""

    def __init__(self, data: bytes, seconds: float):
        super().__init__(data)
        self._seconds, self._end = seconds, time.thread_time() + seconds
        self._num_small = 0

    def watch(self) -> None:
        self.read = self._read  # headers are read faster without

    def check(self) -> None:
        if time.thread_time() > self._end:
            raise TooLargeError(f"more than {self._seconds:g} s to decode")

    def _read(self, size: int = -1, /) -> bytes:
        if 0 <= size < 64:  # some decoders read only small pieces
            self._num_small += 1
        if size >= 64 or self._num_small & 1023 == 1023:
            self.check()
        return super().read(size)


def opened(data: bytes, pixels: int | None = None, seconds: float | None = None) -> Opened:
    """Read the headers of a picture in one of FORMATS.

    Unlike Image.open, this neither uses nor changes Pillow's limits of pixels and texts, which the whole process
    shares; but the plugins of TIFF, GIF and WebP check twice the limit of pixels themselves.

    Args:
      data: an encoded picture.
      pixels: largest number of pixels; MAX_PIXELS by default and at most.
      seconds: largest processor time of this thread for decoding; MAX_SECONDS by default.

    Raises:
      TooLargeError: it has too many bytes, pixels or parts, or would take too much memory.
      Exception: BrokenError if the bytes are in no known format; any other if they are broken.
    """
    if len(data) > MAX_BYTES:
        raise TooLargeError(f"{len(data)} bytes, more than {MAX_BYTES}")
    Image.init()  # loads the plugins, once
    for form in FORMATS:
        factory, accepts = Image.OPEN.get(form, (None, None))
        if factory is None or accepts(data[:16]) is not True:  # a str names a missing library
            continue
        found = _CONTENTS.get(form, Contents)(data)
        most = min(pixels or MAX_PIXELS, MAX_PIXELS)
        if found.size is not None:
            _check_size(*found.size, most)
        file = _Watched(found.data, MAX_SECONDS if seconds is None else seconds)
        try:
            image = factory(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # another format, as in Image.open
            continue
        _check_size(*image.size, most)
        _check_memory(data, found, image)
        if form == "PNG" and found.depth < 8 and isinstance(key := image.info.get("transparency"), int):
            if image.mode == "L":  # the stored value, which Pillow compares with widened ones
                image.info["transparency"] = key * 255 // (2**found.depth - 1)
        file.watch()
        return Opened(image, found, file)
    raise BrokenError("not a picture, or of an unknown format")


def low_bytes(data: bytes) -> Image.Image | None:
    """Return the low bytes of a PNG or TIFF with several channels of 16 bits, of which Pillow reads the high ones.

    Returns None for other pictures. For a PNG of greys with alpha, the result is RGBA whose alpha has the high bytes.
    """
    image = opened(data).image
    tiles = []
    for tile in image.tile:
        raw, *more = (tile.args,) if isinstance(tile.args, str) else tile.args
        mode, _, order = str(raw).partition(";16")
        if not order or image.mode not in ("RGB", "RGBA", "CMYK"):
            return None
        is_grey = mode == "LA"  # Pillow cannot unpack these; read both bytes of both channels
        is_little = order == "L" or (order == "N" and sys.byteorder == "little")
        raw = "RGBA" if is_grey else f"{mode};16{'B' if is_little else 'L'}"
        tiles.append(tile._replace(args=(raw, *more) if more else raw))
    if not tiles:
        return None
    image.tile = tiles
    image.load()
    image.info.pop("transparency", None)
    if is_grey:
        _, low, alpha, _ = image.split()
        image = Image.merge("RGBA", (low, low, low, alpha))
    return image


def _check_size(width: int, height: int, most: int) -> None:
    if width * height > most:
        raise TooLargeError(f"{width}x{height} pixels, more than {most}")
    if max(width, height) > MAX_SIDE:
        raise TooLargeError(f"{width}x{height} pixels, a side of more than {MAX_SIDE}")


def _check_memory(data: bytes, found: Contents, image: Image.Image) -> None:
    own = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    is_deep = image.format == "TIFF" and max(image.tag_v2.get(258, (1,))) > 8
    is_deep = is_deep or (found.depth == 16 and "transparency" in image.info)
    if image.mode in ("RGB", "RGBA") and is_deep:
        own *= 2  # the low bytes are a picture too
    decoder = _PASSES_PIXEL if found.has_passes else _DECODER_PIXEL.get(image.format, 0)
    num = len(data) * _DECODER_BYTE.get(image.format, 0) + found.scratch
    num += len(data) + (len(found.data) if found.data is not data else 0)
    num += image.width * image.height * (own + decoder)
    if num > MAX_MEMORY:
        raise TooLargeError(
            f"{image.width}x{image.height} pixels of {image.format} in {len(data)} bytes, which take {num >> 20} MiB "
            f"to decode, more than {MAX_MEMORY >> 20}"
        )


def undecodable(error: Exception, where: str = "The file") -> UndecodableError:
    """Convert any error of Pillow's plugins on broken files, such as OSError, SyntaxError or struct.error."""
    while isinstance(error, SystemError) and error.__cause__ is not None:  # of a decoder whose `read` raised
        error = error.__cause__
    reason = one_line(error)
    is_too_large = isinstance(error, TooLargeError | Image.DecompressionBombError)
    kind = "too large" if is_too_large else "undecodable"
    fix = "make it smaller" if is_too_large else f"save it as one of {', '.join(FORMATS)}"
    return UndecodableError(f"{where} must be a picture; it cannot be decoded ({reason}): {fix}.", reason, kind)


def one_line(error: Exception) -> str:
    """Return the message of an error in one line, without the address of Pillow's buffer."""
    text = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>", "its bytes", str(error))
    return " ".join(text.split()) or type(error).__name__
