"""Conversion of decoded pictures of any mode, depth, transparency and profile to 8-bit sRGB."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

from imagen_jax.data import profiles
from imagen_jax.data.profiles import BrokenError

BAND = 2**18  # pixels that are converted at once: they fit into the cache, without a copy of the picture
_DIM = 16  # integers below a 16th of white would become black


@dataclasses.dataclass(frozen=True)
class Levels:
    """The meaning of integers of more than 8 bits."""

    white: int
    shift: int | None = None  # to the high byte, where white is 2^n - 1
    is_inverted: bool = False  # zero is white
    transparent: int | None = None  # the value of transparent pixels


@dataclasses.dataclass(frozen=True)
class Reading:
    """How the stored values of a picture become sRGB, in addition to its mode."""

    profile: bytes | None = None  # ICC
    levels: Levels | None = None  # of integers of more than 8 bits
    low: Image.Image | None = None  # the low bytes of colours of 16 bits, to compare with `key`
    key: tuple[int, int, int] | None = None  # the transparent colour, 16 bits each


def is_deep(mode: str) -> bool:
    """Whether a Pillow mode holds integers of more than 8 bits."""
    return mode.startswith("I")


def is_unchanged(image: Image.Image, profile: bytes | None) -> bool:
    """Whether the stored values are sRGB: RGB without transparency or a profile of other colours."""
    plain = image.mode == "RGB" and not image.has_transparency_data
    return plain and profiles.to_srgb(profile, "RGB") is None


def to_rgb(image: Image.Image, reading: Reading, box: tuple[int, int, int, int]) -> Image.Image:
    """Convert a part of a loaded picture to sRGB, with transparency over white.

    Args:
      image: in any Pillow mode except "F".
      reading: how values become colours.
      box: left, top, right and bottom of the part, as for `Image.crop`.
    """
    part = image if box == (0, 0, *image.size) else image.crop(box)
    if reading.levels is not None:
        return _deep_to_rgb(part, reading.levels, reading.profile)
    if reading.key is not None:
        clear = np.asarray(part) == [value >> 8 for value in reading.key]
        clear &= np.asarray(reading.low.crop(box)) == [value & 255 for value in reading.key]
        rgb = _profiled(part, reading.profile)
        return _over_white(rgb, Image.fromarray(np.where(clear.all(-1), 0, 255).astype(np.uint8)))
    if part.has_transparency_data:
        if part.mode in ("La", "LA"):  # with a profile of greys
            part = part.convert("LA")
            return _over_white(_profiled(part.getchannel("L"), reading.profile), part.getchannel("A"))
        if part.mode in ("L", "1"):
            alpha = part.convert("RGBA").getchannel("A")
            return _over_white(_profiled(part.convert("L"), reading.profile), alpha)
        part = part.convert("RGBA")  # premultiplied and palette modes have no direct way to composite
        return _over_white(_profiled(part.convert("RGB"), reading.profile), part.getchannel("A"))
    return _profiled(part, reading.profile)


def _profiled(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert opaque colours to sRGB."""
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode not in ("L", "RGB", "CMYK", "LAB"):
        image = image.convert("RGB")
    if (transform := profiles.to_srgb(profile, image.mode)) is not None:
        return transform.apply(image)
    return image if image.mode == "RGB" else image.convert("RGB")  # which copies


def _over_white(rgb: Image.Image, alpha: Image.Image) -> Image.Image:
    rgb = rgb.convert("RGBA")
    rgb.putalpha(alpha)
    return Image.alpha_composite(Image.new("RGBA", rgb.size, "white"), rgb).convert("RGB")


def _deep_to_rgb(image: Image.Image, levels: Levels, profile: bytes | None) -> Image.Image:
    deep = np.asarray(image)
    if levels.shift is not None:
        x = deep >> levels.shift
    else:
        x = np.rint(np.minimum(deep, levels.white) * (255 / levels.white))
    x = x.astype(np.uint8)
    rgb = _profiled(Image.fromarray(255 - x if levels.is_inverted else x), profile)
    if levels.transparent is None:
        return rgb
    return _over_white(rgb, Image.fromarray(np.where(deep == levels.transparent, 0, 255).astype(np.uint8)))


def check_high_bytes(image: Image.Image, low_bytes: Callable[[], Image.Image | None]) -> None:
    """Check a loaded colour TIFF of 16 bits, of which Pillow reads the high 8.

    Raises:
      BrokenError: as in `levels`, or the file declares another maximum than that of its bits.
    """
    if (bits := max(image.tag_v2.get(258, (1,)))) <= 8:
        return
    declared = image.tag_v2.get(281)
    declared = declared if isinstance(declared, tuple) else (declared,)
    if any(isinstance(value, int) and 0 < value < 2**bits - 1 for value in declared):
        raise BrokenError(
            f"colours of {bits} bits with a maximum of {max(declared)}: scale them to {bits} bits"
        )

    def highest(picture: Image.Image) -> int:
        channels = [channel for channel in picture.getbands() if channel not in "Aa"]
        return max(picture.getchannel(channel).getextrema()[1] for channel in channels)

    # Separate planes cannot be read again and are not considered black.
    if (high := highest(image)) < 256 / _DIM and (high or (low := low_bytes()) is None or highest(low)):
        raise BrokenError(
            f"values below {(high + 1) << 8} in {bits} bits, which would be black: the file does not say what white is"
        )


def levels(image: Image.Image) -> Levels:
    """Return the meaning of the integers of a loaded picture, by its bits or its declared maximum.

    Raises:
      BrokenError: values are negative, above the declared maximum, or so small that the picture would be black: the
        file does not define white.
    """
    tags = getattr(image, "tag_v2", {})
    bits, is_signed = 16, False
    if image.format == "TIFF":
        bits = max(tags.get(258, (1,)))
        is_signed = max(tags.get(339, (1,))) == 2
    declared = tags.get(341 if is_signed else 281, tags.get(281))  # SMaxSampleValue, MaxSampleValue
    declared = declared[0] if isinstance(declared, tuple) and declared else declared
    full = 2 ** (bits - is_signed) - 1
    white = int(declared) if isinstance(declared, int | float) and 0 < declared < full else full
    lowest, highest, is_widened = _extent(image)
    is_inverted = image.format == "TIFF" and tags.get(262) == 0
    if bits == 32 and not is_signed and lowest < 0:
        raise BrokenError("whole numbers of 32 bits above 2^31, which are not read: convert it to 16 bits")
    if lowest < 0:
        raise BrokenError(f"values of {lowest} to {highest}, of which the negative ones have no colour")
    if highest > white:
        raise BrokenError(f"values up to {highest}, above the maximum of {white} that the file says")
    if image.format == "TIFF" and 0 < highest < white / _DIM and not (is_widened and bits <= 16):
        raise BrokenError(
            f"values of {lowest} to {highest} in {bits} bits, which would be black: the file does not say what white is"
        )
    shift = bits - is_signed - 8 if white == full and bits - is_signed >= 8 else None
    return Levels(white, shift, is_inverted, image.info.get("transparency"))


def _extent(image: Image.Image) -> tuple[int, int, bool]:
    """Return the smallest and largest value, and whether all are 8 bits widened to 16, by 256 or 257."""
    lowest, highest, by = None, None, {256, 257}
    for band in _bands(image):
        x = np.asarray(band)
        low, high = int(x.min()), int(x.max())
        lowest = low if lowest is None else min(lowest, low)
        highest = high if highest is None else max(highest, high)
        by = {factor for factor in by if not (x % factor).any()}
    return lowest, highest, bool(by)


def _bands(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, BAND // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))
