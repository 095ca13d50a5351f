"""Masks for inpainting: the pixels of a picture to paint.

A mask is data, not a picture: 1 of 0..1, 255 of 0..65535 and blue on black all mark pixels. The rules:

- If alpha varies, it decides. Opaque pixels of one colour other than black are strokes on an empty layer and are
  painted. Opaque pixels of many colours or shades are a photo, whose erased part is painted.
- Otherwise colours decide. Of two values or colours, the lighter is painted; of more on a dark background, those closer
  to the lightest than to the background. Edges may be soft or noisy.
- Anything else is ambiguous and refused: a photo, labels, black strokes on an empty layer.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from imagen_jax.checks import Verbatim, require
from imagen_jax.data import opening, transforms

_NOISE = 16  # steps of 8 bits by which compression changes an even area
_MANY = 16  # more colours, in steps of _NOISE, mean a photo
_FEW = 4  # values between darkest and lightest; soft edges and compression make more, or few such pixels
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF")
_FIX = "give white where to paint and black elsewhere, without transparency"


def read(data: bytes, name: str = "mask", size: tuple[int, int] | None = None) -> np.ndarray:
    """Read which pixels a mask marks, by the rules of this module.

    Args:
      data: an encoded picture in one of `opening.FORMATS`, of any mode and depth.
      name: names the mask in errors.
      size: (height, width) of its picture in pixels.

    Returns:
      bool [H, W], upright by its EXIF orientation: True where to paint.

    Raises:
      ValueError: the bytes are not a picture, or the mask has another size, is ambiguous, or marks nothing.
    """
    values, alpha, is_lossy = _samples(data, name)
    height, width = values.shape[:2]
    expected, got = size or (height, width), Verbatim(f"{width}x{height}")
    rule = f"have the size of --image, {expected[1]}x{expected[0]} pixels"
    require((height, width) == tuple(expected), name, rule, got, "resize it")
    if alpha is not None and np.ptp(alpha) > _NOISE:
        painted = _by_alpha(values, alpha, name)
    elif alpha is not None and alpha.max() <= _NOISE:
        raise _ambiguous(name, "a picture that is transparent everywhere")
    else:
        painted = _by_colour(values, is_lossy, name)
    got = Verbatim(f"none of {painted.size} pixels")
    require(bool(painted.any()), name, "mark something to paint", got, _FIX)
    return painted


def load(
    option: str, path: Path, image_size: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, str]:
    """Read the mask of a picture from a file and fit it to the result.

    Args:
      option: names the mask in errors, such as "--mask".
      path: an encoded picture.
      image_size, size: (height, width) in pixels of its picture and of the result.

    Returns:
      (float32 [*size, 1], see `fit`; one line with the number of painted pixels).

    Raises:
      ValueError: it cannot be read; and as `read` and `fit` do.
    """
    mask = read(transforms.read_file(option, path), f"{option} {path}", image_size)
    fitted = fit(mask, size, f"{option} {path}")
    outside = int(mask.sum() - mask[transforms.middle(*mask.shape, size)].sum())
    report = f"{option}: {int(fitted.sum())} of {fitted.size} pixels of the result are painted"
    if outside:
        report += f"; {outside} of the {int(mask.sum())} pixels that it marks lie outside of the middle that is used"
    return fitted, f"{report}."


def fit(mask: np.ndarray, size: tuple[int, int], name: str = "mask") -> np.ndarray:
    """Fit a mask, bool [H, W], as `transforms.fit` fits its picture, cropped to the same middle.

    Returns:
      float32 [*size, 1]: 1 where any part of the pixel is marked, else 0.

    Raises:
      ValueError: no marked pixel is in the middle; `name` names the mask.
    """
    rows, columns = transforms.middle(*mask.shape, size)
    inside = mask[rows, columns]
    y, x = (f"{part.start} to {part.stop - 1}" for part in (rows, columns))
    rule = f"mark something within the middle that is used, rows {y} and columns {x}"
    fix = "crop the image and the mask, or give --size in their shape"
    require(bool(inside.any()), name, rule, Verbatim("marks outside"), fix)
    for axis, new in enumerate(size):
        inside = _any_part(inside, new, axis)
    return inside[..., None].astype(np.float32)


def _any_part(mask: np.ndarray, size: int, axis: int) -> np.ndarray:
    """Resize one axis of a bool array: True where any overlapping pixel is True."""
    old = mask.shape[axis]
    start = np.arange(size) * old // size
    last = -(-np.arange(1, size + 1) * old // size) - 1  # which the next new pixel may share
    return np.logical_or.reduceat(mask, start, axis) | mask.take(last, axis)


def _samples(data: bytes, name: str) -> tuple[np.ndarray, np.ndarray | None, bool]:
    """Return (grey values [H, W] of any type or colours uint8 [H, W, 3], alpha uint8 [H, W] or None, is it lossy)."""
    try:
        found = opening.opened(data)
        image, turn = found.image, found.orientation
        is_lossy = image.format in _LOSSY and b"VP8L" not in data[:4096]  # which is WebP without loss
        image.load()
        image = _with_low_bytes(image, data)
        is_inverted = image.format == "TIFF" and image.tag_v2.get(262) == 0 and image.mode.startswith("I;16")
        alpha = None
        if image.has_transparency_data:
            if image.mode.startswith("I;16"):
                x = np.asarray(image)
                alpha = np.where(x == image.info["transparency"], 0, 255).astype(np.uint8)
            else:
                image = image.convert({"La": "LA", "LA": "LA"}.get(image.mode, "RGBA"))
                alpha = np.asarray(image.getchannel("A"))
                image = image.convert("L" if image.mode == "LA" else "RGB")
        if image.mode not in ("1", "L", "I", "F") and not image.mode.startswith("I;16"):
            image = image.convert("RGB")
        x = 65535 - np.asarray(image) if is_inverted else np.asarray(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's plugins raise almost anything on broken files
        raise ValueError(f"{name} must be a picture; got {opening.one_line(error)}.") from error
    return transforms.turned(x, turn), None if alpha is None else transforms.turned(alpha, turn), is_lossy


def _with_low_bytes(image: Image.Image, data: bytes) -> Image.Image:
    """Return a loaded picture, with the low bytes of its colours of 16 bits if the high ones are constant."""
    if image.mode not in ("RGB", "RGBA"):
        return image
    extrema = image.getextrema()[:3]
    if any(low < high for low, high in extrema) or (low := opening.low_bytes(data)) is None:
        return image
    if image.mode == "RGBA":
        low.putalpha(image.getchannel("A"))
    is_black = not any(high for _, high in extrema)
    return low if is_black or any(low < high for low, high in low.getextrema()[:3]) else image


def _by_alpha(values: np.ndarray, alpha: np.ndarray, name: str) -> np.ndarray:
    """Return the strokes on an empty layer, or the hole of a photo."""
    opaque = alpha > (int(alpha.min()) + int(alpha.max())) / 2
    colours = _eight_bits(values[alpha >= int(alpha.max()) - _NOISE])  # without soft edges
    if np.ptp(colours, axis=0).max() <= 2 * _NOISE:  # one colour
        if colours.max() <= 2 * _NOISE:
            raise _ambiguous(name, "black beside transparency, which may be strokes or a hole")
        return opaque
    counts = np.unique(_coarse(colours), return_counts=True)[1]
    is_grey = not np.ptp(colours, axis=1).any()  # which has no more than 16 such steps
    if len(counts) > _MANY or (is_grey and (counts > len(colours) / 200).sum() > _MANY // 2):
        return ~opaque
    raise _ambiguous(name, "a few colours beside transparency, of which each may mark what to paint")


def _by_colour(values: np.ndarray, is_lossy: bool, name: str) -> np.ndarray:
    if values.ndim == 3 and (values.max(-1) - values.min(-1)).max() <= (2 * _NOISE if is_lossy else 0):
        values = values[..., 1]  # shades of grey
    return (_by_hue if values.ndim == 3 else _by_grey)(values, is_lossy, name)


def _by_grey(values: np.ndarray, is_lossy: bool, name: str) -> np.ndarray:
    if not np.isfinite(values).all():
        num = np.count_nonzero(~np.isfinite(values))
        raise ValueError(f"{name} must have finite values; got NaN or infinity {num} times: {_FIX}.")
    if values.min() < 0:
        raise ValueError(f"{name} must have values from 0 up; got {values.min()} to {values.max()}: {_FIX}.")
    low, high = (value.item() for value in (values.min(), values.max()))
    white = next(white for white in (1, 255, 65535, math.inf) if high <= white)
    is_even = high - low <= (2 * _NOISE if is_lossy else 0)
    if is_even:  # nothing is marked, or all
        if low > white - 2 * _NOISE * (white == 255 and is_lossy) - 1e-9 and high > 0:
            return np.ones(values.shape, bool)
        if high <= 2 * _NOISE * is_lossy:
            return np.zeros(values.shape, bool)
        raise _ambiguous(name, f"{low:g} everywhere, neither black nor white")
    painted = values > (low + high) / 2
    if not is_lossy and np.all((values == low) | (values == high)):
        return painted
    if white not in (1, math.inf) and high < white / 2:
        raise _ambiguous(name, f"values of {low:g} to {high:g}, as labels have")
    return _two_sided(values, painted, is_lossy, name)


def _by_hue(values: np.ndarray, is_lossy: bool, name: str) -> np.ndarray:
    """Return the marks in colour on a dark background, or the lighter of two colours."""
    brightest = values.max(-1)
    low, high = int(brightest.min()), int(brightest.max())
    painted = brightest > (low + high) / 2
    hues = _coarse(values[painted] // 2)  # in double steps: soft edges are of the same few
    counts = np.unique(hues, return_counts=True)[1]
    if (counts > len(hues) / 200).sum() > _MANY // 2:
        raise _ambiguous(name, "a picture of many colours without transparency")
    if low <= 3 * _NOISE and high - low > 2 * _NOISE:
        return _two_sided(brightest, painted, is_lossy, name)
    first = values[0, 0]
    is_first = (values == first).all(-1)
    others = values[~is_first]
    if not is_lossy and (others == others[:1]).all():  # two colours
        if not len(others):
            raise _ambiguous(name, f"the colour {tuple(first.tolist())} everywhere")
        difference = others[0].astype(np.float64) - first
        step = difference @ (0.299, 0.587, 0.114)
        if abs(step) > _NOISE or np.all(difference >= 0) or np.all(difference <= 0):
            return ~is_first if step > 0 else is_first
        raise _ambiguous(name, "two colours of which neither is lighter")
    raise _ambiguous(name, "colours without a black background")


def _two_sided(values: np.ndarray, painted: np.ndarray, is_lossy: bool, name: str) -> np.ndarray:
    """Return `painted` if the values between the darkest and the lightest can be soft edges; otherwise raise."""
    low, high = values.min().item(), values.max().item()
    margin = (high - low) / 8
    between = values[(values > low + margin) & (values < high - margin)]
    if len(between) > values.size / 2:
        raise _ambiguous(name, "a picture of many shades without transparency")
    # Of few values each may mark something else: labels, also small ones, or strokes of another shade.
    levels = np.unique(values[(values > low) & (values < high - margin)]).tolist()
    if is_lossy or not 0 < len(levels) <= _FEW:
        return painted
    padded = np.pad(values, 1, mode="edge")
    near = [padded[y:, x:][: values.shape[0], : values.shape[1]] for y in range(3) for x in range(3)]
    darkest, lightest = np.minimum.reduce(near), np.maximum.reduce(near)
    for level in levels:
        here = values == level
        if level <= low + margin:  # compression leaves such values too, but no areas of one
            here &= darkest == lightest
        else:  # a soft edge has darker and lighter neighbours
            here &= (darkest == level) | (lightest == level)
        if (num := int(here.sum())) > painted.sum() / 4:
            raise _ambiguous(name, f"{num} pixels of {level:g} between {low:g} and {high:g}")
    return painted


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Convert colours [N, C] or greys [N] to int [N, C] in 0..255."""
    values = values[:, None] if values.ndim == 1 else values
    if values.dtype == bool:
        return values.astype(np.int64) * 255
    if values.dtype == np.uint8:
        return values.astype(np.int64)
    return (values.astype(np.float64) * (255 / max(float(values.max()), 1e-9))).astype(np.int64)


def _coarse(colours: np.ndarray) -> np.ndarray:
    """Return one number for each colour of [N, C] in 0..255, in steps of _NOISE."""
    steps = np.asarray(colours, np.int64) // _NOISE
    return steps @ (256 // _NOISE) ** np.arange(steps.shape[-1])


def _ambiguous(name: str, seen: str) -> ValueError:
    return ValueError(f"{name} must say in one way where to paint; got {seen}: {_FIX}.")
