"""From encoded pictures to square float pictures, one picture at a time, in numpy and Pillow."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_jax import resize
from imagen_jax.data import listing

CROPS = ("center", "random", "aspect")
NUM_DRAWS = 4  # uniform numbers that place a window: top, left, area and ratio of the sides
MAX_PIXELS = 2**27  # of one picture: cameras have 100 megapixels; 2**27 take 1 GiB while they are decoded
MAX_BYTES = 2**28  # of one encoded picture: more than 100 megapixels take as a PNG of 8 bits
# What Pillow may take the bytes for, whatever the file is called. It would hand PostScript to another program.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000")

_HUNGRY = ("WEBP", "AVIF", "JPEG2000")  # whose decoders take twice the memory, and get half the pixels
_BAND = 2**18  # pixels that are converted at once: they stay in the cache, and no whole copy is made
# EXIF orientation: does the picture lie on its side, upside down, and left to right?
_TURNS = {
    2: (False, False, True),
    3: (False, True, True),
    4: (False, True, False),
    5: (True, False, False),
    6: (True, True, False),
    7: (True, True, True),
    8: (True, False, True),
}


class UndecodableError(ValueError):
    """Bytes that are not a picture, or only a part of one, or of a size beyond all reason; or a record
    that cannot even be read. `reason` is the message without the name of the record."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason or message


def read_file(option: str, path: Path) -> bytes:
    """The bytes of a picture that a user names.

    Raises:
      ValueError: one line: it is no file, or has more than MAX_BYTES.
      OSError: it cannot be read.
    """
    try:
        return listing.read_file(path, MAX_BYTES)
    except listing.NoFileError as error:
        raise ValueError(f"{option} must be a picture file; {path} is {error.kind}: give a file.") from error
    except listing.TooLargeError as error:
        raise ValueError(
            f"{option} must have at most {MAX_BYTES} bytes; {path} has {error}: make it smaller."
        ) from error


def opened(data: bytes) -> Image.Image:
    """A picture of which only the header has been read, in one of FORMATS.

    Unlike Image.open, it neither asks nor changes Pillow's limit of pixels, which the whole process
    shares; ask `too_large` before anything is decoded.

    Raises:
      Exception: ValueError if no format knows the bytes; almost anything if they are broken.
    """
    Image.init()  # loads the plugins, once
    for form in FORMATS:
        factory, accepts = Image.OPEN.get(form, (None, None))
        if factory is None or accepts(data[:16]) is not True:  # a str says which library is missing
            continue
        try:
            return factory(io.BytesIO(data), "")
        except (SyntaxError, IndexError, TypeError, struct.error):  # not this one: as Image.open does
            continue
    raise ValueError("not a picture, or of an unknown format")


def too_many_bytes(num: int) -> str:
    """Why an encoded picture of `num` bytes is not read; "" if it may be."""
    return f"{num} bytes, more than {MAX_BYTES}" if num > MAX_BYTES else ""


def too_large(image: Image.Image) -> str:
    """What is wrong with the size that the header tells: "" if nothing."""
    width, height = image.size
    most = MAX_PIXELS // 2 if image.format in _HUNGRY else MAX_PIXELS
    return f"{width}x{height} pixels, more than {most}" if width * height > most else ""


def decode(data: bytes, where: str = "The file") -> np.ndarray:
    """Decodes a picture as a person sees it: upright, transparency over white, 8-bit RGB.

    Args:
      data: an encoded picture in one of FORMATS. Of a film, the first frame.
      where: names the picture in the error.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UndecodableError: a ValueError: the bytes are not a picture, are truncated, or have more pixels
        than MAX_PIXELS, of some formats half of that.
    """
    return _decode(data, where, lambda height, width: 1, lambda height, width: (0, 0, height, width))


def _decode(
    data: bytes,
    where: str,
    shrink: Callable[[int, int], int],
    place: Callable[[int, int], tuple[int, int, int, int]],
) -> np.ndarray:
    """A window of a picture, which `place` tells from its height and width. The picture may be smaller
    by at most the factor that `shrink` gives for them; much faster for large JPEGs."""
    try:
        if beyond := too_many_bytes(len(data)):
            raise ValueError(beyond)
        image = opened(data)
        if beyond := too_large(image):
            raise ValueError(beyond)
        if image.format in ("JPEG", "MPO"):
            _draft(image, shrink)
        image.load()
        return _upright(image, place)
    except MemoryError:  # says nothing about the picture
        raise
    # Pillow's plugins raise almost anything on broken files: OSError, SyntaxError, struct.error...
    except Exception as error:
        reason = one_line(error)
        raise UndecodableError(f"{where} cannot be decoded as a picture: {reason}", reason) from error


def _draft(image: Image.Image, shrink: Callable[[int, int], int]) -> None:
    """Lets the decoder of a JPEG make it smaller."""
    width, height = image.size
    most = shrink(*((width, height) if _turn(image)[0] else (height, width)))
    factor = next(f for f in (8, 4, 2, 1) if f <= max(most, 1))
    image.draft("RGB", (width // factor, height // factor))


def _turn(image: Image.Image) -> tuple[bool, bool, bool]:
    return _TURNS.get(orientation(image), (False, False, False))


def orientation(image: Image.Image) -> int:
    """What the EXIF data say of a picture; 1, upright, if there are none, or none that can be read."""
    try:
        return image.getexif().get(0x0112, 1)
    except (SyntaxError, ValueError, TypeError, KeyError, EOFError, struct.error):
        return 1


def _upright(image: Image.Image, place: Callable[[int, int], tuple[int, int, int, int]]) -> np.ndarray:
    """A window of a loaded picture as it is looked at, a few rows at a time."""
    sideways, down, mirrored = _turn(image)  # only now: Pillow turns TIFFs itself when it loads them
    height, width = image.size if sideways else image.size[::-1]
    top, left, tall, wide = place(height, width)
    x = np.empty((tall, wide, 3), np.uint8)
    stored = x  # the same pixels in the order in which they are stored
    if sideways:
        stored, top, left = stored.swapaxes(0, 1), left, top
    tall, wide = stored.shape[:2]
    if down:
        stored, top = stored[::-1], image.height - top - tall
    if mirrored:
        stored, left = stored[:, ::-1], image.width - left - wide
    rows = max(1, _BAND // wide)
    for first in range(0, tall, rows):
        last = min(first + rows, tall)
        band = image.crop((left, top + first, left + wide, top + last))
        stored[first:last] = np.asarray(to_rgb(band))
    return x


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB: 16-bit grey keeps its high byte, transparency is laid over white."""
    if image.mode.startswith("I"):
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError(f"mode {image.mode} with values outside 0..65535")
        image = Image.fromarray((grey >> 8).astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("floating-point pictures have no defined white")
    elif image.has_transparency_data:
        # Premultiplied and palette modes have no direct way to composite.
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies


def window(height: int, width: int, crop: str, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """The part of a picture that becomes a square: top, left, height and width in pixels.

    "center" is the largest square in the middle, "random" one anywhere along the longer side.
    "aspect" has between half and all of the area of the largest window of its shape, width to
    height from 3/4 to 4/3 (log-uniform), anywhere. `draws` are NUM_DRAWS numbers in [0, 1).
    """
    side = min(height, width)
    if crop == "center":
        return (height - side) // 2, (width - side) // 2, side, side
    top, left, area, ratio = draws
    tall = wide = side
    if crop == "aspect":
        ratio = 0.75 ** (1 - 2 * ratio)
        scale = np.sqrt((1 + area) / 2)
        tall = max(1, round(scale * min(height, width / ratio)))
        wide = max(1, round(scale * min(height * ratio, width)))
    return int(top * (height - tall + 1)), int(left * (width - wide + 1)), tall, wide


def to_unit(x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Values 0..255, uint8 or float, to float32 in [-1, 1]; written to `out` if it is given."""
    x = np.divide(np.asarray(x, np.float32), np.float32(127.5), out=out)
    x -= np.float32(1)
    return x


def from_unit(x: np.ndarray) -> np.ndarray:
    """Values in [-1, 1] (clipped) to uint8, rounded to nearest; undoes `to_unit`."""
    x = np.asarray(x, np.float32)
    return np.rint((np.clip(x, -1, 1) + np.float32(1)) * np.float32(127.5)).astype(np.uint8)


def square(
    data: bytes,
    image_size: int,
    where: str = "The file",
    *,
    crop: str = "center",
    draws: Sequence[float] = (),
    part: tuple[range, range] | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """Encoded picture -> a `window` of it as float32 [S, S, 3] in [-1, 1], S = image_size.

    Args:
      data, where: as for `decode`, whose errors it raises.
      crop, draws: as for `window`.
      part: the rows and columns of that square to make, as in `resize.to_size`; all if None.
      out: where the result is written, [S, S, 3] or as `part` says.
    """

    def shrink(height: int, width: int) -> int:  # what is left to area averaging is a factor of 2 at least
        return min(window(height, width, crop, draws)[2:]) // (2 * image_size)

    def place(height: int, width: int) -> tuple[int, int, int, int]:
        return window(height, width, crop, draws)

    x = _decode(data, where, shrink, place)
    x = resize.to_size(x, image_size, part, out)
    return to_unit(x, out=x)


def fit(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of a uint8 picture [H, W, C] in the shape of `size`, as float32 [*size, C] in [-1, 1]."""
    return to_unit(resize.to_size(x[middle(*x.shape[:2], size)], size))


def middle(height: int, width: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of the largest middle part of a picture that has the shape of `size`, (h, w)."""
    scale = min(height / size[0], width / size[1])
    rows, columns = (max(1, round(side * scale)) for side in size)
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def turned(x: np.ndarray, orientation: int) -> np.ndarray:
    """An array [H, W, ...] as stored -> upright, by its EXIF orientation (1 to 8)."""
    sideways, down, mirrored = _TURNS.get(orientation, (False, False, False))
    x = x[::-1] if down else x
    x = x[:, ::-1] if mirrored else x
    return x.swapaxes(0, 1) if sideways else x


def encode_png(x: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG")
    return buffer.getvalue()


def one_line(error: Exception) -> str:
    """What an error says, without the address of the buffer that Pillow puts where a file's name would stand."""
    text = re.sub(r"<[^<>]* object at 0x[0-9a-f]+>", "its bytes", str(error))
    return " ".join(text.split()) or type(error).__name__
