"""Reading of pictures of the `shapes` data by classical image analysis: which objects they show, on what background."""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from imagen_jax.prepare import shapes

MIN_CONTRAST = 50.0  # RGB distance (of 442) to the background below which nothing is seen
MIN_AREA = 28.0  # pixels; the smallest object of `shapes` covers 70

# Outlines are compared on a grid of 25x25 points, out to 1.8 radii of the disc of equal area.
GRID = np.linspace(-1.8, 1.8, 25)


@dataclass(frozen=True)
class Seen:
    """An object in a picture.

    Attributes:
      shape, color, size: as `shapes` names them.
      center: (x, y) in pixels.
      diameter: in pixels.
      area: in pixels^2.
    """

    shape: str
    color: str
    size: str
    center: tuple[float, float]
    diameter: float
    area: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows: its objects, the largest first, and the name of its background."""

    objects: tuple[Seen, ...]
    background: str


def read(image: Any) -> Reading:
    """Return the objects and the background of a picture.

    Args:
      image: [64, 64, 3], uint8 or float in [-1, 1].

    Raises:
      ValueError: other shapes, types or ranges.
    """
    rgb = _to_rgb(image)
    # Objects may reach the border, but never fill half of a frame along it.
    frame = np.ones(rgb.shape[:2], bool)
    frame[3:-3, 3:-3] = False
    ground = np.median(rgb[frame], axis=0)
    names = list(shapes.BACKGROUNDS)
    distances = np.linalg.norm(lab(list(shapes.BACKGROUNDS.values())) - lab(ground), axis=-1)
    regions = _regions(rgb, ground)
    objects = [_describe(*region, alone=len(regions) == 1) for region in regions]
    objects.sort(key=lambda seen: -seen.area)
    return Reading(tuple(objects), names[distances.argmin()])


def _to_rgb(image: Any) -> np.ndarray:
    image = np.asarray(image)
    shape = (shapes.SIZE, shapes.SIZE, 3)
    if image.shape != shape:
        raise ValueError(f"a picture of shapes must have shape {shape}; got {image.shape}: resize it first.")
    if image.dtype == np.uint8:
        return image.astype(np.float64)
    # Samples may exceed the range slightly; pictures in [0, 255] are refused.
    if not np.isfinite(image).all() or abs(image).max() > 2:
        low, high = image.min(), image.max()
        raise ValueError(
            f"a picture must be uint8, or float in [-1, 1]; got {image.dtype} in [{low}, {high}]: rescale it first."
        )
    return (np.clip(image.astype(np.float64), -1, 1) + 1) * 127.5


def lab(rgb: Any) -> np.ndarray:
    """Convert sRGB in [0, 255] to CIELAB (D65), [..., 3]."""
    rgb = np.asarray(rgb) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _color_map(rgb: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """Return the color of each pixel, [H, W]: an index into COLORS, -1 for the background.

    A pixel at a soft edge is a mixture of an object and the background; half red and half white, for example, is close
    to pink. A pixel with less contrast to the background than its neighbours is therefore fitted by such mixtures, one
    for each color, and any other pixel gets the nearest color. A vote of neighbouring pixels then removes the mixtures
    of two objects that touch.
    """
    palette = np.array(list(shapes.COLORS.values()), np.float64)
    towards, offset = palette - ground, rgb - ground
    contrast = np.linalg.norm(offset, axis=-1)
    visible = contrast > MIN_CONTRAST
    solid = (contrast > 0.85 * ndimage.maximum_filter(contrast, 3))[visible]
    offset, rgb = offset[visible], rgb[visible]  # [pixels, 3]
    amount = np.clip(offset @ towards.T / (towards**2).sum(axis=1), 0, 1)  # [pixels, colors]
    mixed = np.linalg.norm(offset[:, None] - amount[..., None] * towards, axis=-1)
    plain = np.linalg.norm(lab(rgb)[:, None] - lab(palette), axis=-1)
    best = np.where(solid, plain.argmin(axis=1), mixed.argmin(axis=1))
    votes = np.zeros((len(towards), *visible.shape))
    votes[best, *visible.nonzero()] = amount.max(axis=1)
    votes = ndimage.uniform_filter(votes, (0, 5, 5), mode="constant")
    return np.where(visible, votes.argmax(axis=0), -1)


def _regions(rgb: np.ndarray, ground: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Return the color of each object and its soft mask [H, W], the share of each pixel that it covers."""
    offset = rgb - ground
    contrast = np.linalg.norm(offset, axis=-1)
    colors = _color_map(rgb, ground)
    found = []
    for index, name in enumerate(shapes.COLORS):
        for rough in _pieces(colors == index):
            # Pixels that are at least half covered: separates blurred neighbours, whose edges touch.
            half = np.percentile(contrast[rough], 80) / 2
            found += [(name, piece) for piece in _pieces(rough & (contrast > half))]
    taken = np.zeros(contrast.shape, bool)
    for _, piece in found:
        taken |= piece
    regions = []
    for name, piece in found:
        # The soft edge lies around the piece, where no other object is.
        around = piece | (ndimage.binary_dilation(piece, iterations=2) & ~taken)
        body = piece & (contrast >= np.percentile(contrast[piece], 50))
        full = np.median(offset[body], axis=0)
        cover = np.clip(offset @ full / (full @ full), 0, 1)
        regions.append((name, np.where(around, cover, 0.0)))
    return regions


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    """Return the connected pieces of a mask, without those below MIN_AREA."""
    labels, num = ndimage.label(mask)
    areas = ndimage.sum_labels(mask, labels, range(1, num + 1))
    return [labels == 1 + i for i in range(num) if areas[i] >= MIN_AREA]


def _describe(color: str, cover: np.ndarray, alone: bool) -> Seen:
    outline, (x, y), area = _normalize(cover)
    names, unit_areas, outlines = _outlines()
    overlap = np.minimum(outlines, outline).sum(axis=(1, 2))
    union = np.maximum(outlines, outline).sum(axis=(1, 2))
    best = (overlap / union).argmax()
    diameter = 2 * np.sqrt(area / unit_areas[best])
    ranges = shapes.sizes(1 if alone else 2)  # objects that are alone have other sizes
    size = "small" if diameter < (ranges["small"][1] + ranges["large"][0]) / 2 else "large"
    return Seen(names[best], color, size, (float(x), float(y)), float(diameter), float(area))


def _normalize(cover: np.ndarray) -> tuple[np.ndarray, tuple[float, float], float]:
    """Return a soft mask moved and scaled to a common place and area [25, 25], its center (x, y), and its area."""
    area = cover.sum()
    rows, columns = np.arange(cover.shape[0]), np.arange(cover.shape[1])
    y, x = cover.sum(axis=1) @ rows / area, cover.sum(axis=0) @ columns / area
    points = np.sqrt(area / np.pi) * GRID
    where = np.meshgrid(y + points, x + points, indexing="ij")
    outline = ndimage.map_coordinates(cover, where, order=1, mode="constant")
    return outline, (x + 0.5, y + 0.5), area


@functools.cache
def _outlines() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the outlines to compare with: names of shapes [n], areas at radius 1 [n], outlines [n, 25, 25]."""
    names, areas, outlines = [], [], []
    ranges = (*shapes.SIZES_ALONE.values(), *shapes.SIZES_TOGETHER.values())
    diameters = [sum(span) / 2 for span in ranges]
    angles = np.linspace(-shapes.MAX_ANGLE, shapes.MAX_ANGLE, 5)
    for shape, diameter, angle, blur in itertools.product(shapes.SHAPES, diameters, angles, (0.0, 1.0)):
        thing = shapes.Object(shape, "red", "", (32.3, 32.2), diameter, angle)
        cover = np.zeros((shapes.SIZE, shapes.SIZE))
        where, part = shapes.coverage(thing)
        cover[where] = part
        outline, _, area = _normalize(ndimage.gaussian_filter(cover, blur))
        names.append(shape)
        areas.append(area / (diameter / 2) ** 2)
        outlines.append(outline)
    return names, np.array(areas), np.array(outlines)
