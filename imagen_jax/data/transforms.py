"""Conversion of encoded pictures to square float pictures, one at a time, with numpy and Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_jax import resize
from imagen_jax.data import colors, opening
from imagen_jax.storage import input_files

CROPS = ("center", "random", "aspect")
NUM_DRAWS = 4  # uniform numbers that determine a window: top, left, area and ratio of the sides

def read_file(option: str, path: Path) -> bytes:
    """Return the bytes of a picture of at most opening.MAX_BYTES; raises as `input_files.read_given` does."""
    return input_files.read_given(option, path, opening.MAX_BYTES, "a picture file", "give another file")


def decode(data: bytes, where: str = "The file") -> np.ndarray:
    """Decode a picture upright, in sRGB, with transparency over white.

    Args:
      data: an encoded picture in one of `opening.FORMATS`. Only the first frame of an animation is decoded.
      where: names the picture in the error.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UndecodableError: a ValueError: the bytes are not a picture, truncated, or beyond the limits of `opening`.
    """
    return _decode(data, where, lambda height, width: (0, 0, height, width))


def decode_reduced(found: opening.Opened, max_size: int) -> np.ndarray:
    """Decode an opened picture as `decode` does, area averaged if its longer side exceeds `max_size`.

    The whole picture never exists as an array. Raises errors of any kind if it is broken.
    """
    reading = found.load()
    height, width = _upright_size(found)
    size = reduced_size(height, width, max_size)
    if size == (height, width):
        return _upright(found, reading, (0, 0, height, width))
    x = resize.area_by_rows(
        lambda top, bottom: _upright(found, reading, (top, 0, bottom - top, width)), (height, width, 3), size
    )
    return np.rint(x, out=x).astype(np.uint8)


def reduced_size(height: int, width: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) scaled down to a longer side of at most `max_size`."""
    scale = max_size / max(height, width)
    return (height, width) if scale >= 1 else (max(1, round(height * scale)), max(1, round(width * scale)))


def _decode(
    data: bytes, where: str, place: Callable[[int, int], tuple[int, int, int, int]], size: int | None = None
) -> np.ndarray:
    """Decode the window of a picture that `place` computes from its height and width.

    With `size`, its decoder may reduce a JPEG, which is much faster, to a window of at least twice that side.
    """
    try:
        found = opening.opened(data)
        if size is not None and found.image.format in ("JPEG", "MPO"):
            most = min(place(*_upright_size(found))[2:]) // (2 * size)
            factor = next((f for f in (8, 4, 2) if f <= most), 1)
            mode = found.image.mode  # grey and CMYK are kept, for their profiles
            found.image.draft(mode, (found.image.width // factor, found.image.height // factor))
        reading = found.load()
        return _upright(found, reading, place(*_upright_size(found)))
    except MemoryError:  # not a property of the picture
        raise
    except Exception as error:
        raise opening.undecodable(error, where) from error


def _upright_size(found: opening.Opened) -> tuple[int, int]:
    """Return (height, width)."""
    return found.image.size if found.orientation > 4 else found.image.size[::-1]


def _upright(found: opening.Opened, reading: colors.Reading, window: tuple[int, int, int, int]) -> np.ndarray:
    """Return an upright window (top, left, height, width) of a loaded picture, converted a few rows at a time."""
    image = found.image
    sideways, down, mirrored = _turns(found.orientation)
    top, left, tall, wide = window
    x = np.empty((tall, wide, 3), np.uint8)
    stored = x  # a view in the order in which pixels are stored
    if sideways:
        stored, top, left = stored.swapaxes(0, 1), left, top
    tall, wide = stored.shape[:2]
    if down:
        stored, top = stored[::-1], image.height - top - tall
    if mirrored:
        stored, left = stored[:, ::-1], image.width - left - wide
    rows = max(1, colors.BAND // wide)
    for first in range(0, tall, rows):
        last = min(first + rows, tall)
        band = colors.to_rgb(image, reading, (left, top + first, left + wide, top + last))
        stored[first:last] = np.asarray(band)
        found.check_time()
    return x


def window(height: int, width: int, crop: str, draws: Sequence[float]) -> tuple[int, int, int, int]:
    """Return the part of a picture that becomes a square: top, left, height and width in pixels.

    Args:
      height, width: of the picture.
      crop: "center" is the largest square in the middle, "random" one anywhere along the longer side. "aspect" is
        anywhere, with a ratio of width to height from 3/4 to 4/3 (log-uniform) and half to all of the area of the
        largest such window.
      draws: NUM_DRAWS numbers in [0, 1).
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
    """Convert values 0..255, uint8 or float, to float32 in [-1, 1]; write them to `out` if it is given."""
    x = np.divide(np.asarray(x, np.float32), np.float32(127.5), out=out)
    x -= np.float32(1)
    return x


def from_unit(x: np.ndarray) -> np.ndarray:
    """Convert values in [-1, 1] (clipped) to uint8, rounded to nearest: the inverse of `to_unit`."""
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
    """Decode a `window` of a picture to float32 [S, S, 3] in [-1, 1], S = image_size.

    Args:
      data, where: as for `decode`, whose errors it raises.
      crop, draws: as for `window`.
      part: rows and columns of the square to compute, as in `resize.to_size`; all if None.
      out: array for the result, [S, S, 3] or of the shape of `part`.
    """

    x = _decode(data, where, lambda height, width: window(height, width, crop, draws), image_size)
    x = resize.to_size(x, image_size, part, out)
    return to_unit(x, out=x)


def fit(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Crop a uint8 picture [H, W, C] to the middle with the aspect of `size`; return float32 [*size, C] in [-1, 1]."""
    return to_unit(resize.to_size(x[middle(*x.shape[:2], size)], size))


def middle(height: int, width: int, size: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the largest centred part of a picture with the aspect of `size`, (h, w)."""
    scale = min(height / size[0], width / size[1])
    rows, columns = (max(1, round(side * scale)) for side in size)
    top, left = (height - rows) // 2, (width - columns) // 2
    return slice(top, top + rows), slice(left, left + columns)


def turned(x: np.ndarray, orientation: int) -> np.ndarray:
    """Rotate a stored array [H, W, ...] upright by its EXIF orientation (1 to 8)."""
    sideways, down, mirrored = _turns(orientation)
    x = x[::-1] if down else x
    x = x[:, ::-1] if mirrored else x
    return x.swapaxes(0, 1) if sideways else x


def _turns(orientation: int) -> tuple[bool, bool, bool]:
    """Return whether a stored picture of an EXIF orientation is transposed, upside down and mirrored."""
    return orientation > 4, orientation in (3, 4, 6, 7), orientation in (2, 3, 7, 8)


def encode_png(x: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as PNG."""
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG")
    return buffer.getvalue()
