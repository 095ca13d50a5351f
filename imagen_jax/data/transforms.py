"""From encoded pictures to square float pictures, one picture at a time, in numpy and Pillow."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from imagen_jax import resize


def decode(data: bytes, where: str = "picture", near: int | None = None) -> np.ndarray:
    """Decodes a picture as a person sees it: upright, transparency over white, 8-bit RGB.

    Args:
      data: an encoded picture: PNG, JPEG or whatever else Pillow reads. Of a film, the first frame.
      where: names the picture in the error.
      near: if given, a larger picture may come out shrunk by a power of two or an integer factor,
        with both sides still at least twice this many pixels; much faster for large photographs.

    Returns:
      uint8 [H, W, 3].

    Raises:
      ValueError: the bytes are not a picture, or are truncated.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if near is not None:
            image.draft("RGB", (2 * near, 2 * near))  # JPEG only: the decoder itself shrinks
        image = to_rgb(ImageOps.exif_transpose(image))
    # Pillow's plugins raise almost anything on broken files: OSError, SyntaxError, struct.error...
    except Exception as error:
        raise ValueError(f"{where} cannot be decoded as a picture: {_one_line(error)}") from error
    factor = min(image.size) // (2 * near) if near is not None else 1
    return np.asarray(image.reduce(factor) if factor > 1 else image)


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
    return image.convert("RGB")


def center_crop_square(x: np.ndarray) -> np.ndarray:
    """[..., H, W, C] -> the central [..., S, S, C] with S = min(H, W); odd rests go to the end."""
    height, width = x.shape[-3:-1]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return x[..., top : top + side, left : left + side, :]


def to_unit(x: np.ndarray) -> np.ndarray:
    """Values 0..255, uint8 or float, to float32 in [-1, 1]."""
    return np.asarray(x, np.float32) / np.float32(127.5) - np.float32(1)


def from_unit(x: np.ndarray) -> np.ndarray:
    """Values in [-1, 1] (clipped) to uint8, rounded to nearest; undoes `to_unit`."""
    x = np.asarray(x, np.float32)
    return np.rint((np.clip(x, -1, 1) + np.float32(1)) * np.float32(127.5)).astype(np.uint8)


def square(data: bytes, image_size: int, where: str = "picture") -> np.ndarray:
    """Encoded picture -> its central square as float32 [image_size, image_size, 3] in [-1, 1]."""
    x = center_crop_square(decode(data, where, near=image_size))
    scale = resize.bilinear if x.shape[0] < image_size else resize.area
    return to_unit(scale(x, image_size))


def fit(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of a uint8 picture [H, W, C] in the shape of `size`, as float32 [*size, C] in [-1, 1]."""
    height, width = x.shape[:2]
    scale = min(height / size[0], width / size[1])
    rows, columns = (max(1, round(side * scale)) for side in size)
    top, left = (height - rows) // 2, (width - columns) // 2
    x = x[top : top + rows, left : left + columns]
    smaller = tuple(min(new, old) for new, old in zip(size, x.shape[:2], strict=True))
    return to_unit(resize.bilinear(resize.area(x, smaller), size))


def encode_png(x: np.ndarray) -> bytes:
    """uint8 [H, W, 3] -> PNG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(x).save(buffer, "PNG")
    return buffer.getvalue()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
