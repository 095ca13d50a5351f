"""Does a picture show what its caption says? For the `shapes` data, by classical image analysis.

`read` looks at a picture, without its caption, and lists the objects it sees; `score` compares
that with a caption's claims (see `imagen_jax.prepare.shape_captions`), one verdict for each category:

  color         every claimed object finds an object of its own that has its color
  shape         the same for shapes, whatever the colors
  color+shape   the same for both at once, so swapped colors fail here only
  size          matched objects have the claimed sizes
  relation      matched objects stand as claimed: along the claimed axis at least 4 pixels apart,
                and not farther apart across it
  count         as many objects as claimed in all, where the caption says "two" or "three"
  object count  the same for every caption, so "a red circle" asks for exactly one object
  background    the background has the claimed color
  all           everything above that the caption states

"Matched": claimed objects are paired with seen ones so that as many colors and shapes as possible
agree, sizes deciding between equals. Where several pairings are equally good, size is right if it
is in one of them, relation only if it is in all of them; a relation also needs each of its two
objects to have the claimed color or the claimed shape. Objects that nobody asked for count
against count and object count only.

A rate means little without the rate of chance, so `alignment` also scores every caption against
other captions' pictures ("shuffled").
"""

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from imagen_jax import resize
from imagen_jax.evaluation.metrics import METRICS, Metric, Samples
from imagen_jax.prepare import shapes
from imagen_jax.prepare.shape_captions import Claims

CATEGORIES = (
    "color", "shape", "color+shape", "size", "relation", "count", "object count", "background",
    "all",
)  # fmt: skip
MIN_CONTRAST = 50.0  # RGB distance (of 442) to the background below which nothing is seen
MIN_AREA = 28.0  # pixels; the least object of `shapes` covers 70
MIN_SEPARATION = 4.0  # pixels between centres, for a relation
MAX_MATCHED = 6  # objects that are paired with claims: the largest; bounds the work on noise
NUM_SHUFFLES = 8

# Outlines are compared on a grid of 25x25 points, out to 1.8 radii of the disc of equal area.
GRID = np.linspace(-1.8, 1.8, 25)


@dataclass(frozen=True)
class Seen:
    """An object in a picture: `center` (x, y) and `diameter` in pixels, `area` in pixels^2."""

    shape: str
    color: str
    size: str
    center: tuple[float, float]
    diameter: float
    area: float


@dataclass(frozen=True)
class Reading:
    """What a picture shows: objects, the largest first, and the name of the background."""

    objects: tuple[Seen, ...]
    background: str


# ---- reading ----


def read(image: Any) -> Reading:
    """Reads a picture.

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
    distances = np.linalg.norm(_lab(list(shapes.BACKGROUNDS.values())) - _lab(ground), axis=-1)
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
    # Samples may overshoot a little; pictures in [0, 255] would not be read as meant.
    if not np.isfinite(image).all() or abs(image).max() > 2:
        low, high = image.min(), image.max()
        raise ValueError(
            f"a picture must be uint8, or float in [-1, 1]; got {image.dtype} in [{low}, {high}]: rescale it first."
        )
    return (np.clip(image.astype(np.float64), -1, 1) + 1) * 127.5


def _lab(rgb: Any) -> np.ndarray:
    """sRGB in [0, 255] to CIELAB (D65), [..., 3]."""
    rgb = np.asarray(rgb) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    xyz = linear @ to_xyz.T / to_xyz.sum(axis=1)
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def _color_map(rgb: np.ndarray, ground: np.ndarray) -> np.ndarray:
    """The color each pixel most likely belongs to: index into COLORS, -1 for the background.

    A pixel at a soft edge is a mixture of an object and the background: half red and half white
    is near to pink. So a pixel that stands out less than its neighbours is explained as such a
    mixture, by the color that fits best; any other has the color that it is nearest to. Then
    neighbours vote, which leaves no room for the mixtures of two objects that touch.
    """
    palette = np.array(list(shapes.COLORS.values()), np.float64)
    towards, offset = palette - ground, rgb - ground
    contrast = np.linalg.norm(offset, axis=-1)
    visible = contrast > MIN_CONTRAST
    solid = (contrast > 0.85 * ndimage.maximum_filter(contrast, 3))[visible]
    offset, rgb = offset[visible], rgb[visible]  # [pixels, 3]
    amount = np.clip(offset @ towards.T / (towards**2).sum(axis=1), 0, 1)  # [pixels, colors]
    mixed = np.linalg.norm(offset[:, None] - amount[..., None] * towards, axis=-1)
    plain = np.linalg.norm(_lab(rgb)[:, None] - _lab(palette), axis=-1)
    best = np.where(solid, plain.argmin(axis=1), mixed.argmin(axis=1))
    votes = np.zeros((len(towards), *visible.shape))
    votes[best, *visible.nonzero()] = amount.max(axis=1)
    votes = ndimage.uniform_filter(votes, (0, 5, 5), mode="constant")
    return np.where(visible, votes.argmax(axis=0), -1)


def _regions(rgb: np.ndarray, ground: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Each object's color and its soft mask: [H, W], how much of each pixel it covers."""
    offset = rgb - ground
    contrast = np.linalg.norm(offset, axis=-1)
    colors = _color_map(rgb, ground)
    found = []
    for index, name in enumerate(shapes.COLORS):
        for rough in _pieces(colors == index):
            # Half covered or more: parts blurred neighbours, whose edges touch, from each other.
            half = np.percentile(contrast[rough], 80) / 2
            found += [(name, piece) for piece in _pieces(rough & (contrast > half))]
    taken = np.zeros(contrast.shape, bool)
    for _, piece in found:
        taken |= piece
    regions = []
    for name, piece in found:
        # The soft edge lies around the piece, as far as other objects leave it room.
        around = piece | (ndimage.binary_dilation(piece, iterations=2) & ~taken)
        body = piece & (contrast >= np.percentile(contrast[piece], 50))
        full = np.median(offset[body], axis=0)
        cover = np.clip(offset @ full / (full @ full), 0, 1)
        regions.append((name, np.where(around, cover, 0.0)))
    return regions


def _pieces(mask: np.ndarray) -> list[np.ndarray]:
    """The connected pieces of a mask, without specks."""
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
    ranges = shapes.sizes(1 if alone else 2)  # an object alone is small or large by its own measure
    size = "small" if diameter < (ranges["small"][1] + ranges["large"][0]) / 2 else "large"
    return Seen(names[best], color, size, (float(x), float(y)), float(diameter), float(area))


def _normalize(cover: np.ndarray) -> tuple[np.ndarray, tuple[float, float], float]:
    """A soft mask moved and scaled to a common place and area: outline, center (x, y), area."""
    area = cover.sum()
    rows, columns = np.arange(cover.shape[0]), np.arange(cover.shape[1])
    y, x = cover.sum(axis=1) @ rows / area, cover.sum(axis=0) @ columns / area
    points = np.sqrt(area / np.pi) * GRID
    where = np.meshgrid(y + points, x + points, indexing="ij")
    outline = ndimage.map_coordinates(cover, where, order=1, mode="constant")
    return outline, (x + 0.5, y + 0.5), area


@functools.cache
def _outlines() -> tuple[list[str], np.ndarray, np.ndarray]:
    """What to compare with: shape names [n], areas at radius 1 [n] and outlines [n, 25, 25]."""
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


# ---- scoring ----


def score(reading: Reading, claims: Claims) -> dict[str, bool]:
    """Which of a caption's claims a picture fulfils: one entry for each category it states."""
    wanted = [claim for claim in claims["objects"] for _ in range(claim["count"])]
    seen = reading.objects

    def all_found(*traits: str) -> bool:
        asked = Counter(tuple(claim[trait] for trait in traits) for claim in wanted)
        return asked <= Counter(tuple(getattr(thing, trait) for trait in traits) for thing in seen)

    matches = _best_matches(wanted, seen)
    verdict = {
        "color": all_found("color"),
        "shape": all_found("shape"),
        "color+shape": all_found("color", "shape"),
        "object count": len(seen) == len(wanted),
    }
    if any(claim["size"] for claim in wanted):
        verdict["size"] = any(
            all(thing and claim["size"] in (None, thing.size) for claim, thing in match) for match in matches
        )
    if claims["relation"]:
        verdict["relation"] = all(_stands(match, claims["relation"]) for match in matches)
    if any(claim["count"] > 1 for claim in claims["objects"]):
        verdict["count"] = verdict["object count"]
    if claims["background"]:
        verdict["background"] = reading.background == claims["background"]
    verdict["all"] = all(verdict.values())
    return verdict


Match = tuple[tuple[dict, Seen | None], ...]


def _agreement(claim: dict, thing: Seen | None) -> float:
    if thing is None:
        return 0.0
    size = 0.25 * (claim["size"] == thing.size)
    return (claim["color"] == thing.color) + (claim["shape"] == thing.shape) + size


def _best_matches(wanted: list[dict], seen: Sequence[Seen]) -> list[Match]:
    """All pairings of claimed objects with seen ones, or None, that agree in the most."""
    seats = [*seen[:MAX_MATCHED], *[None] * (len(wanted) - len(seen))]
    matches = [
        tuple(zip(wanted, chosen, strict=True)) for chosen in itertools.permutations(seats, len(wanted))
    ]
    totals = [sum(itertools.starmap(_agreement, match)) for match in matches]
    return [m for m, total in zip(matches, totals, strict=True) if total > max(totals) - 0.125]


def _stands(match: Match, relation: str) -> bool:
    (first_claim, first), (second_claim, second) = match
    if _agreement(first_claim, first) < 1 or _agreement(second_claim, second) < 1:
        return False
    dx, dy = np.subtract(second.center, first.center)
    along, across = {
        "left of": (dx, dy), "right of": (-dx, dy), "above": (dy, dx), "below": (-dy, dx),
    }[relation]  # fmt: skip
    return bool(along >= MIN_SEPARATION and along >= abs(across))


def alignment(images: Iterable[Any], claims: Sequence[Claims]) -> dict[str, dict[str, float | int | None]]:
    """How often pictures fulfil their captions' claims, by category.

    Args:
      images: N pictures, each as `read` takes them.
      claims: N captions' claims.

    Returns:
      For each category that a caption states: "right", the share of those captions whose picture
      is right; "shuffled", the same with other captions' pictures, averaged over 8 fixed
      permutations that leave none in place (None if N is 1); "num", how many captions state it.
    """
    return _rates([read(image) for image in images], claims)


@METRICS.register("alignment")
class Alignment(Metric):
    """`alignment` of pictures, which are enlarged to the size of `shapes` if they are smaller.

    The value of a picture is the share of its caption's claims that it fulfils.
    """

    needs = ("claims",)

    def values(self, samples: Samples) -> np.ndarray:
        answers = map(score, _readings(samples.images), samples.claims)
        return np.array([np.mean([right for name, right in a.items() if name != "all"]) for a in answers])

    def update(self, state: tuple, samples: Samples) -> tuple:
        return (*state, *zip(_readings(samples.images), samples.claims, strict=True))

    def result(self, state: tuple) -> dict[str, dict[str, float | int | None]]:
        return _rates(*map(list, zip(*state, strict=True)))

    def report(self, result: dict[str, dict[str, float | int | None]]) -> str:
        return format_table(result)


def _readings(images: np.ndarray) -> list[Reading]:
    is_small = images.shape[1] < shapes.SIZE  # of a cascade without its last stage
    return [read(image) for image in (resize.bilinear(images, shapes.SIZE) if is_small else images)]


def _rates(readings: Sequence[Reading], claims: Sequence[Claims]) -> dict[str, dict[str, float | int | None]]:
    if len(readings) != len(claims) or not readings:
        raise ValueError(
            "alignment must have one claims for each of at least one picture; "
            f"got {len(readings)} pictures and {len(claims)} claims: pass equal numbers."
        )
    num = len(readings)
    right = _count(readings, claims)
    # Rolling a shuffled order by 1, 2, .. gives permutations without fixed points.
    order = np.random.default_rng(0).permutation(num)
    shuffled, rolls = Counter(), range(1, min(NUM_SHUFFLES, num - 1) + 1)
    for roll in rolls:
        others = dict(zip(order, np.roll(order, roll), strict=True))
        shuffled += _count([readings[others[i]] for i in range(num)], claims)
    return {
        category: {
            "right": right[category, True] / total,
            "shuffled": shuffled[category, True] / total / len(rolls) if rolls else None,
            "num": total,
        }
        for category in CATEGORIES
        if (total := right[category, True] + right[category, False])
    }


def _count(readings: Sequence[Reading], claims: Sequence[Claims]) -> Counter:
    pairs = zip(readings, claims, strict=True)
    return Counter(item for reading, claim in pairs for item in score(reading, claim).items())


def format_table(result: dict[str, dict[str, float | int | None]]) -> str:
    """The result of `alignment` as a Markdown table, rates in percent."""

    def percent(rate: float | None) -> str:
        return "-" if rate is None else f"{100 * rate:.1f}"

    rows = ["| category | right % | shuffled % | prompts |", "|---|---:|---:|---:|"]
    rows += [
        f"| {name} | {percent(row['right'])} | {percent(row['shuffled'])} | {row['num']} |"
        for name, row in result.items()
    ]
    return "\n".join(rows)
