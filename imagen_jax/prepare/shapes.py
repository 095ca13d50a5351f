"""Generated pictures of shapes with captions that a program can check.

A picture is 64x64 RGB: one to three anti-aliased objects on a plain background. Its caption describes some of it, and
its claims (see `shape_captions`) are the same as data. All three are a function of (part, split, index).

Parts. "single": one object, near the middle. "full": one object (25%), two objects and their relation (relation, 30%),
two or three alike (count, 20%), two or three different ones (and, 25%). "relations": the pictures of relations alone.
"halves": two large objects that fill the halves of the picture, their relation and the background, all in the caption.
A network soon learns from these what a relation means, and from the small objects of "full", at any distance, hardly.

Splits. `HELD_OUT` lists one shape for each color, a seventh of all pairs.
  train: no object is a held-out pair; every color and every shape occurs.
  validation: as train, with other pictures.
  test: every object of a single or count picture is a held-out pair; relation and "and" pictures have at least one, so
    they need colors and shapes never seen together.

Lengths are in pixels, x to the right and y down, pixel (row i, column j) covering [j, j+1] x
[i, i+1]. Angles are in degrees, counter-clockwise.
"""

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from imagen_jax.prepare.shape_captions import Claims, caption_of, pick

SIZE = 64
SUPERSAMPLING = 4

# Colors keep a CIELAB distance of 34 or more from each other and from every background.
COLORS = {
    "red": (214, 30, 35), "orange": (247, 132, 10), "yellow": (247, 226, 40),
    "green": (28, 140, 50), "cyan": (40, 205, 215), "blue": (25, 60, 220),
    "purple": (130, 25, 145), "pink": (250, 135, 190),
}  # fmt: skip
BACKGROUNDS = {
    "white": (255, 255, 255), "black": (12, 12, 12), "grey": (128, 128, 128), "brown": (95, 60, 35),
}  # fmt: skip
# Diameters in pixels; an object alone may be larger than one of three.
SIZES_ALONE = {"small": (27.0, 31.0), "large": (43.0, 50.0)}
SIZES_TOGETHER = {"small": (12.5, 14.5), "large": (21.0, 23.5)}
SIZES_OF_HALVES = {"large": (23.5, 25.5)}
CENTRAL = 4.0  # largest distance in pixels of an object alone from the middle, along each axis
# Largest distance of a shape's points from its centre, in radii; `inside` has the outlines.
REACH = {
    "circle": 1.0, "square": 1.17, "triangle": 1.18, "star": 1.2, "cross": 1.1, "ring": 1.04,
    "heart": 1.14,
}  # fmt: skip
SHAPES = tuple(REACH)
RELATIONS = ("left of", "right of", "above", "below")
KINDS = {"single": 0.25, "relation": 0.30, "count": 0.20, "and": 0.25}
PARTS = ("single", "full", "relations", "halves")
SPLITS = ("train", "validation", "test")

HELD_OUT = frozenset({
    ("red", "star"), ("orange", "cross"), ("yellow", "heart"), ("green", "circle"),
    ("cyan", "triangle"), ("blue", "ring"), ("purple", "square"), ("pink", "circle"),
})  # fmt: skip

MARGIN = 0.5  # least distance in pixels from an object to the edge of the picture
GAP = 2.5  # least distance in pixels between two objects
MAX_ANGLE = 10.0
MAX_TINT = 8  # color jitter, in steps of 1/255, per channel
MAX_DRIFT = 7.0  # largest deviation in pixels of a relation from its axis


def sizes(num: int) -> dict[str, tuple[float, float]]:
    """Return the least and largest diameter of each size in a picture of `num` objects."""
    return SIZES_ALONE if num == 1 else SIZES_TOGETHER


@dataclass(frozen=True)
class Object:
    """One object: `center` (x, y) and `diameter` in pixels; `tint` is added to its RGB color."""

    shape: str
    color: str
    size: str
    center: tuple[float, float]
    diameter: float
    angle: float = 0.0
    tint: tuple[int, int, int] = (0, 0, 0)


@dataclass(frozen=True)
class Scene:
    """The content of a picture. `relation` holds from the first object to the second, or is None."""

    kind: str
    objects: tuple[Object, ...]
    background: str
    relation: str | None = None
    tint: tuple[int, int, int] = (0, 0, 0)


# ---- drawing ----


def inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return which points are in the shape of radius 1 around the origin; u to the right, v up."""
    if shape == "circle":
        return u**2 + v**2 <= 1
    if shape == "ring":
        r2 = u**2 + v**2
        return (r2 <= 1.04**2) & (r2 >= 0.54**2)
    if shape == "square":
        return np.maximum(abs(u), abs(v)) <= 0.82
    if shape == "cross":
        return (np.minimum(abs(u), abs(v)) <= 0.34) & (np.maximum(abs(u), abs(v)) <= 1.04)
    if shape == "triangle":  # inscribed circle of radius 0.59
        return (v >= -0.59) & (abs(u) * np.sqrt(3) + v <= 1.18)
    if shape == "star":
        # Fold the plane onto one tenth of the star: angle 0 at a tip, 36 degrees at a notch.
        tenth, tip, notch = np.pi / 5, 1.2, 0.52
        angle = abs((np.arctan2(u, v) + tenth) % (2 * tenth) - tenth)
        x, y = np.hypot(u, v) * (np.cos(angle), np.sin(angle))
        notch_x, notch_y = notch * np.cos(tenth), notch * np.sin(tenth)
        return (notch_x - tip) * y - notch_y * (x - tip) >= 0
    if shape == "heart":
        x2, y = (1.1 * u) ** 2, 1.1 * v + 0.25
        return (x2 + y**2 - 1) ** 3 <= x2 * y**3
    raise ValueError(f"shape must be one of {SHAPES}; got {shape!r}.")


def coverage(thing: Object, size: int = SIZE) -> tuple[tuple[slice, slice], np.ndarray]:
    """Return the fraction of each pixel that an object covers: (rows, columns) and their [h, w] in [0, 1]."""
    (x, y), radius = thing.center, thing.diameter / 2
    reach = radius * REACH[thing.shape]
    left, right = max(int(x - reach), 0), min(int(x + reach) + 1, size)
    top, bottom = max(int(y - reach), 0), min(int(y + reach) + 1, size)
    step = 1 / SUPERSAMPLING
    dx = (np.arange(left, right, step) + step / 2 - x) / radius
    dy = (y - np.arange(top, bottom, step)[:, None] - step / 2) / radius
    cos, sin = np.cos(np.radians(thing.angle)), np.sin(np.radians(thing.angle))
    mask = inside(thing.shape, cos * dx + sin * dy, cos * dy - sin * dx)
    blocks = mask.reshape(bottom - top, SUPERSAMPLING, right - left, SUPERSAMPLING)
    return (slice(top, bottom), slice(left, right)), blocks.mean(axis=(1, 3))


def render(scene: Scene) -> np.ndarray:
    """Draw a scene as uint8 [64, 64, 3]."""
    image = np.empty((SIZE, SIZE, 3))
    image[:] = np.add(BACKGROUNDS[scene.background], scene.tint)
    for thing in scene.objects:
        where, part = coverage(thing)
        rgb = np.add(COLORS[thing.color], thing.tint)
        image[where] += part[..., None] * (rgb - image[where])
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# ---- composing ----


@functools.cache
def _pairs(held_out: bool) -> tuple[tuple[str, str], ...]:
    pairs = itertools.product(COLORS, SHAPES)
    return tuple(pair for pair in pairs if (pair in HELD_OUT) == held_out)


def _draw_pairs(rng: np.random.Generator, kind: str, split: str) -> list[tuple[str, str]]:
    """Draw the (color, shape) of each object: all different, or all alike for a count."""
    seen, unseen = _pairs(False), _pairs(True)
    first = pick(rng, unseen if split == "test" else seen)
    if kind == "single":
        return [first]
    if kind == "count":
        return [first] * int(rng.integers(2, 4))
    num = 2 if kind == "relation" else int(rng.integers(2, 4))
    others = seen + unseen if split == "test" else seen
    pairs = [first]
    while len(pairs) < num:
        other = pick(rng, others)
        if other not in pairs:
            pairs.append(other)
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _place_freely(rng: np.random.Generator, reach: np.ndarray) -> np.ndarray:
    """Draw centres [n, 2] of disjoint discs of radius `reach` [n] inside the picture, by rejection."""
    room = SIZE - 2 * (reach + MARGIN)
    pairs = list(itertools.combinations(range(len(reach)), 2))
    while True:
        trials = (reach + MARGIN)[:, None] + room[:, None] * rng.random((256, len(reach), 2))
        fits = np.ones(len(trials), bool)
        for i, j in pairs:
            distance = np.hypot(*(trials[:, i] - trials[:, j]).T)
            fits &= distance >= reach[i] + reach[j] + GAP
        if fits.any():
            return trials[fits.argmax()]


def _place_centrally(rng: np.random.Generator, reach: np.ndarray) -> np.ndarray:
    """Draw centres [n, 2] near the middle of the picture."""
    room = np.clip(SIZE / 2 - reach - MARGIN, 0, CENTRAL)
    return SIZE / 2 + room[:, None] * rng.uniform(-1, 1, (len(reach), 2))


def _axis_and_order(relation: str) -> tuple[int, list[int]]:
    """Return the axis of a relation, 0 for x, and the indices of the objects along it."""
    return 0 if relation in ("left of", "right of") else 1, [0, 1] if relation in ("left of", "above") else [1, 0]


def _place_related(rng: np.random.Generator, reach: np.ndarray, relation: str) -> np.ndarray:
    """Draw centres [2, 2] of two discs, the first in `relation` to the second."""
    axis, order = _axis_and_order(relation)
    slack = SIZE - 2 * MARGIN - GAP - 2 * reach.sum()
    before, until = np.sort(rng.random(2)) * slack
    near, far = reach[order]
    along = MARGIN + near + before, MARGIN + 2 * near + until + GAP + far
    room = reach + MARGIN
    across = rng.uniform(room.max(), SIZE - room.max()) + rng.uniform(-0.5, 0.5, 2) * MAX_DRIFT
    centers = np.empty((2, 2))
    centers[order, axis] = along
    centers[:, 1 - axis] = np.clip(across, room, SIZE - room)
    return centers


def _place_in_halves(rng: np.random.Generator, relation: str) -> np.ndarray:
    """Draw centres [2, 2] close to those of the picture's halves, the first in `relation` to the second."""
    axis, order = _axis_and_order(relation)
    centers = np.full((2, 2), SIZE / 2)
    centers[order, axis] = SIZE / 4, 3 * SIZE / 4
    centers[:, 1 - axis] += rng.uniform(-CENTRAL, CENTRAL, 2)
    return centers


def scene(index: int, split: str = "train", part: str = "full") -> Scene:
    """Return the scene of `example(index, split, part)`."""
    return _compose(_stream(index, split, part), split, part)


def _stream(index: int, split: str, part: str) -> np.random.Generator:
    if part not in PARTS or split not in SPLITS or index < 0:
        raise ValueError(
            f"part must be one of {PARTS}, split of {SPLITS} and index at least 0; got {part!r}, {split!r}, {index}."
        )
    return np.random.default_rng([PARTS.index(part), SPLITS.index(split), index])


def _compose(rng: np.random.Generator, split: str, part: str) -> Scene:
    only = {"single": "single", "relations": "relation", "halves": "relation"}
    kind = only.get(part) or str(rng.choice(list(KINDS), p=list(KINDS.values())))
    pairs = _draw_pairs(rng, kind, split)
    relation = pick(rng, RELATIONS) if kind == "relation" else None
    ranges = SIZES_OF_HALVES if part == "halves" else sizes(len(pairs))
    chosen = [pick(rng, list(ranges)) for _ in pairs]
    if kind == "count":
        chosen = chosen[:1] * len(pairs)
    diameters = np.array([rng.uniform(*ranges[size]) for size in chosen])
    reach = diameters / 2 * [REACH[shape] for _, shape in pairs]
    if kind == "single":
        centers = _place_centrally(rng, reach)
    elif part == "halves":
        centers = _place_in_halves(rng, relation)
    else:
        centers = _place_related(rng, reach, relation) if relation else _place_freely(rng, reach)
    tints = rng.integers(-MAX_TINT, MAX_TINT + 1, (len(pairs) + 1, 3)).tolist()
    if kind == "count":
        tints[:-1] = tints[:1] * len(pairs)
    angles = rng.uniform(-MAX_ANGLE, MAX_ANGLE, len(pairs))
    objects = tuple(
        Object(shape, color, size, tuple(center), float(diameter), float(angle), tuple(tint))
        for (color, shape), size, center, diameter, angle, tint in zip(
            pairs, chosen, centers.tolist(), diameters, angles, tints[:-1], strict=True
        )
    )
    return Scene(kind, objects, pick(rng, list(BACKGROUNDS)), relation, tuple(tints[-1]))


def example(index: int, split: str = "train", part: str = "full") -> dict[str, Any]:
    """Return a record: image uint8 [64, 64, 3], caption str, claims (see the module's docstring)."""
    rng = _stream(index, split, part)
    shown = _compose(rng, split, part)
    claims = claims_of(shown, rng, names_background=part == "halves")
    return {"image": render(shown), "caption": caption_of(claims, rng), "claims": claims}


def examples(split: str, part: str, num: int) -> Iterator[dict[str, Any]]:
    """Return the first `num` records of a split, in order."""
    return (example(index, split, part) for index in range(num))


# ---- claims ----


def claims_of(scene: Scene, rng: np.random.Generator, names_background: bool = False) -> Claims:
    """Draw the claims of a caption of the scene, with sizes and the background in some of them, or the background in
    all."""
    things = scene.objects[:1] if scene.kind == "count" else scene.objects
    count = len(scene.objects) if scene.kind == "count" else 1
    with_sizes = rng.random() < 0.6
    objects = []
    for thing in things:
        size = thing.size if with_sizes and rng.random() < 0.8 else None
        objects.append({"shape": thing.shape, "color": thing.color, "size": size, "count": count})
    background = scene.background if names_background or rng.random() < 0.4 else None
    return {"kind": scene.kind, "objects": objects, "relation": scene.relation, "background": background}
