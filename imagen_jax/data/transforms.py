"""From encoded pictures to square float pictures, one picture at a time, in numpy and Pillow."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image, ImageOps

from imagen_jax import resize

CROPS = ("center", "random", "aspect")
NUM_DRAWS = 4  # uniform numbers that place a window: top, left, area and ratio of the sides
MAX_PIXELS = 2**28  # of one picture; a header that says more is an attack or damage

# Pillow warns of pictures a third of that, and has only this global to say otherwise.
Image.MAX_IMAGE_PIXELS = MAX_PIXELS


class UndecodableError(ValueError):
    """Bytes that are not a picture, or only a part of one, or of a size beyond all reason."""


def decode(data: bytes, where: str = "picture") -> np.ndarray:
    """Decodes a picture as a person sees it: upright, transparency over white, 8-bit RGB.

    Args:
      data: an encoded picture: PNG, JPEG or whatever else Pillow reads. Of a film, the first frame.
      where: names the picture in the error.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UndecodableError: a ValueError: the bytes are not a picture, are truncated, or have more than
        MAX_PIXELS pixels.
    """
    return np.asarray(_open(data, where))


def _open(
    data: bytes, where: str, shrink: Callable[[int, int], int] = lambda height, width: 1
) -> Image.Image:
    """`decode` as a Pillow image, which may be smaller by at most the factor that `shrink` gives for
    the height and width of the upright picture; much faster for large JPEGs."""
    try:
        image = Image.open(io.BytesIO(data))
        width, height = image.size
        if width * height > MAX_PIXELS:
            raise ValueError(f"{width}x{height} pixels are more than the {MAX_PIXELS} that are read")
        sideways = image.getexif().get(0x0112, 1) in range(5, 9)
        most = shrink(*((width, height) if sideways else (height, width)))
        factor = next(f for f in (8, 4, 2, 1) if f <= max(most, 1))
        image.draft("RGB", (width // factor, height // factor))  # JPEG only: the decoder itself shrinks
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)
    # Pillow's plugins raise almost anything on broken files: OSError, SyntaxError, struct.error...
    except Exception as error:
        raise UndecodableError(f"{where} cannot be decoded as a picture: {_one_line(error)}") from error


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
    where: str = "picture",
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

    image = _open(data, where, shrink)
    top, left, height, width = window(image.height, image.width, crop, draws)
    x = np.asarray(image.crop((left, top, left + width, top + height)))
    x = resize.to_size(x, image_size, part, out)
    return to_unit(x, out=x)


def fit(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of a uint8 picture [H, W, C] in the shape of `size`, as float32 [*size, C] in [-1, 1]."""
    height, width = x.shape[:2]
    scale = min(height / size[0], width / size[1])
    rows, columns = (max(1, round(side * scale)) for side in size)
    top, left = (height - rows) // 2, (width - columns) // 2
    x = x[top : top + rows, left : left + columns]
    return to_unit(resize.to_size(x, size))


def encode_png(x: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG")
    return buffer.getvalue()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
