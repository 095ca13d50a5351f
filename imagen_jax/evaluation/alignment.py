"""Share of the claims of captions of the `shapes` data that pictures fulfil.

`shape_reading.read` lists the objects in a picture without its caption; `score` compares them with the caption's
claims (`imagen_jax.prepare.shape_captions`), one verdict for each category:

  color         for every claimed object there is one of its color, a different one for each
  shape         the same for shapes, whatever the colors
  color+shape   the same for both at once, so that swapped colors fail here only
  size          matched objects have the claimed sizes
  relation      matched objects are placed as claimed: at least 4 pixels apart along the claimed axis,
                and not farther apart across it
  count         as many objects as claimed in all, where the caption says "two" or "three"
  object count  the same for every caption, so that "a red circle" asks for exactly one object
  background    the background has the claimed color
  all           all of the above that the caption states

Claimed objects are matched with seen ones so that as many colors and shapes as possible agree; sizes break ties. Where
several matchings are equally good, size is right if it is right in one of them, relation only if it is right in all of
them. A relation also needs each of its two objects to have the claimed color or the claimed shape. Objects that are not
claimed count against count and object count only.

A rate has to be compared with the rate of chance, so `alignment` also scores every caption against the pictures of
other captions ("shuffled").
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from imagen_jax import resize
from imagen_jax.evaluation.metrics import METRICS, Metric, Samples
from imagen_jax.evaluation.rates import Rates, format_table, rates
from imagen_jax.evaluation.shape_reading import Reading, Seen, read
from imagen_jax.prepare import shapes
from imagen_jax.prepare.shape_captions import Claims, are_claims

CATEGORIES = (
    "color", "shape", "color+shape", "size", "relation", "count", "object count", "background",
    "all",
)  # fmt: skip
MIN_SEPARATION = 4.0  # pixels between centres, for a relation
MAX_MATCHED = 6  # objects that are matched with claims, the largest ones; bounds the work on noise


def score(reading: Reading, claims: Claims) -> dict[str, bool]:
    """Return whether a picture fulfils a caption's claims, by each category that the caption states."""
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
    """Return all matchings of claimed objects with seen ones, or None, of the largest agreement."""
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


def alignment(images: Iterable[Any], claims: Sequence[Claims]) -> Rates:
    """Return the rates at which pictures fulfil the claims of their captions, by category.

    Args:
      images: N pictures, as `shape_reading.read` takes them.
      claims: of N captions.

    Returns:
      of each category that a caption states, as `rates.rates` returns it.

    Raises:
      ValueError: the numbers differ or are 0, or a picture is of another kind.
    """
    return _rates([read(image) for image in images], claims)


@METRICS.register("alignment")
class Alignment(Metric):
    """`alignment` of pictures, which are resized to the size of `shapes`.

    The value of a picture is the share of its caption's claims that it fulfils.
    """

    needs = ("claims",)
    claims_of = "shapes"
    reads_claims = staticmethod(are_claims)

    def values(self, samples: Samples) -> np.ndarray:
        answers = map(score, _readings(samples.images), samples.claims)
        return np.array([np.mean([right for name, right in a.items() if name != "all"]) for a in answers])

    def update(self, state: tuple, samples: Samples) -> tuple:
        return (*state, *zip(_readings(samples.images), samples.claims, strict=True))

    def result(self, state: tuple) -> Rates:
        return _rates(*map(list, zip(*state, strict=True)))

    def report(self, result: Rates) -> str:
        return format_table(result)


def _readings(images: np.ndarray) -> list[Reading]:
    return [read(image) for image in resize.to_size(images, shapes.SIZE)]


def _rates(readings: Sequence[Reading], claims: Sequence[Claims]) -> Rates:
    if len(readings) != len(claims) or not readings:
        raise ValueError(
            "alignment must have the claims of one caption for each of at least one picture; "
            f"got {len(readings)} pictures and {len(claims)} claims: pass equal numbers."
        )
    return rates(readings, claims, score, CATEGORIES)
