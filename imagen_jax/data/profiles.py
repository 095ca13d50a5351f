"""Colour profiles and their conversion to sRGB."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms

_SPACES = {"L": b"GRAY", "RGB": b"RGB ", "CMYK": b"CMYK", "LAB": b"Lab "}
_FLAGS = ImageCms.Flags.BLACKPOINTCOMPENSATION | ImageCms.Flags.NOCACHE
_SAME = 1  # of 255 steps: the rounding error of a picture that is sRGB already
# Of ITU-T H.273: chromaticities x, y of white, red, green and blue; and transfer functions as exponents.
_D65 = (0.3127, 0.3290)
_PRIMARIES = {
    1: (*_D65, 0.640, 0.330, 0.300, 0.600, 0.150, 0.060),  # BT.709, sRGB
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (*_D65, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (*_D65, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (*_D65, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),  # BT.2020
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (*_D65, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),  # Display P3
}
_SRGB_CURVE = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
_CURVES = {4: (2.2,), 5: (2.8,), 8: (1.0,)} | dict.fromkeys((1, 6, 13, 14, 15), _SRGB_CURVE)
_HDR = {16: "PQ", 18: "HLG"}
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])


class BrokenError(ValueError):
    """A picture cannot be decoded; the message is the reason without its name."""


@functools.lru_cache(maxsize=32)
def to_srgb(profile: bytes | None, mode: str) -> Transform | None:
    """Return the transform of a profile's colours to sRGB: relative colorimetric with black point compensation.

    Args:
      profile: ICC; None only for LAB, which describes itself.
      mode: of the picture: "L", "RGB", "CMYK" or "LAB".

    Returns:
      None if the values need no transform: they are sRGB already, or the profile is broken or has other channels than
      the picture.
    """
    if profile is None and mode != "LAB":
        return None
    try:
        if profile is None or (mode == "LAB" and profile[16:20] != _SPACES[mode]):
            source = ImageCms.createProfile("LAB")
        elif profile[16:20] == _SPACES.get(mode):
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        else:
            return None
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            _FLAGS | (ImageCms.Flags.NOOPTIMIZE if mode == "L" else 0),
        )
        transform = _Table(transform) if mode == "L" else transform
        return None if mode in ("L", "RGB") and _changes_nothing(transform, mode) else transform
    except MemoryError:
        raise
    except Exception:  # ImageCms.PyCMSError and others
        return None


class _Table:
    """A transform of greys by a table of its 256 results; the library's fast path is off by up to ten steps."""

    def __init__(self, transform: ImageCms.ImageCmsTransform):
        greys = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        self._channels = np.asarray(transform.apply(greys))[0].T.tolist()

    def apply(self, image: Image.Image) -> Image.Image:
        return Image.merge("RGB", [image.point(channel) for channel in self._channels])


Transform = ImageCms.ImageCmsTransform | _Table


def _changes_nothing(transform: Transform, mode: str) -> bool:
    greys = np.arange(256, dtype=np.uint8)[None]
    steps = greys[0, ::15]
    colours = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(1, -1, 3)
    colours = np.concatenate([colours, np.stack([greys] * 3, -1)], 1)
    given = greys if mode == "L" else colours
    made = np.asarray(transform.apply(Image.fromarray(given)), int)
    return bool(np.abs(made - (given[..., None] if mode == "L" else given)).max() <= _SAME)


def from_code_points(primaries: int, transfer: int, *, is_grey: bool = False) -> bytes | None:
    """Return a profile for the code points of ITU-T H.273; None for sRGB and for unknown ones.

    Raises:
      BrokenError: the transfer function is that of a high dynamic range, for which no white is defined.
    """
    if transfer in _HDR:
        raise BrokenError(f"{_HDR[transfer]} pictures of a high dynamic range have no defined white")
    if transfer not in _CURVES or primaries not in _PRIMARIES:
        return None
    return _profile(_PRIMARIES[primaries], _CURVES[transfer], is_grey)


def from_gamma(gamma: float, primaries: Sequence[float] | None, *, is_grey: bool = False) -> bytes | None:
    """Return a profile for a PNG's gAMA (the exponent of the encoding, 0.45455 for sRGB) and cHRM; None for sRGB."""
    primaries = primaries or _PRIMARIES[1]
    is_srgb = bool(np.allclose(primaries, _PRIMARIES[1], atol=2e-3))
    is_about_srgb = 0.44 < gamma < 0.47
    if not 0.1 < gamma < 10 or (is_about_srgb and (is_srgb or is_grey)):
        return None
    return _profile(primaries, _SRGB_CURVE if is_about_srgb else (1 / gamma,), is_grey)


def _profile(primaries: Sequence[float], curve: Sequence[float], is_grey: bool) -> bytes | None:
    """Return an ICC profile, version 4, of a matrix and one curve (ICC.1:2010, sections 7, 9.2, 10.5 and 10.16)."""
    points = np.array(primaries, np.float64).reshape(4, 2)
    if not ((points > 0) & (points < 1)).all():
        return None
    xyz = np.stack([*points.T, 1 - points.sum(1)]) / points[:, 1]  # [3, white red green blue]
    adapted = _BRADFORD @ xyz[:, 0]
    to_d50 = np.linalg.inv(_BRADFORD) @ np.diag(_BRADFORD @ _D50 / adapted) @ _BRADFORD
    try:
        columns = to_d50 @ xyz[:, 1:] * np.linalg.solve(xyz[:, 1:], xyz[:, 0])
    except np.linalg.LinAlgError:
        return None
    if not np.isfinite(columns).all() or np.abs(columns).max() > 100:
        return None
    trc = struct.pack(">4s4xHH", b"para", 0 if len(curve) == 1 else 3, 0) + _fixed(curve)
    tags = {b"wtpt": struct.pack(">4s4x", b"XYZ ") + _fixed(_D50)}
    if is_grey:
        tags[b"kTRC"] = trc
    else:
        for name, column in zip((b"r", b"g", b"b"), columns.T, strict=True):
            tags[name + b"XYZ"] = struct.pack(">4s4x", b"XYZ ") + _fixed(column)
            tags[name + b"TRC"] = trc
    table, content = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += struct.pack(">4sII", name, 132 + 12 * len(tags) + len(content), len(tag))
        content += tag
    header = struct.pack(
        ">I4sI4s4s4s12s4s28x12s48x", 128 + len(table) + len(content), b"", 0x04200000, b"mntr",
        b"GRAY" if is_grey else b"RGB ", b"XYZ ", b"", b"acsp", _fixed(_D50),
    )  # fmt: skip
    return header + table + content


def _fixed(values: Sequence[float]) -> bytes:
    """Encode s15Fixed16Numbers."""
    return np.rint(np.asarray(values, np.float64) * 65536).astype(">i4").tobytes()
