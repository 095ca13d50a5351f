"""Shares of right answers by category, beside those of chance."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

NUM_SHUFFLES = 8
Rates = dict[str, dict[str, float | int | None]]


def rates(
    pictures: Sequence[Any],
    claims: Sequence[Any],
    score: Callable[[Any, Any], dict[str, bool]],
    categories: Sequence[str],
) -> Rates:
    """Return how often pictures are right, by category.

    Args:
      pictures: what was read in N pictures.
      claims: of N captions.
      score: (picture, claims) -> whether the picture is right, by each category that the caption states.
      categories: in the order of the result.

    Returns:
      For each category that a caption states: "right", the share of those captions whose picture is right;
      "shuffled", the same with the pictures of other captions, averaged over 8 fixed permutations that leave none in
      place (None if N is 1); "num", the number of captions that state it.
    """
    num = len(pictures)
    right = _count(pictures, claims, score)
    # Rolling a shuffled order by 1, 2, ... gives permutations without fixed points.
    order = np.random.default_rng(0).permutation(num)
    shuffled, rolls = Counter(), range(1, min(NUM_SHUFFLES, num - 1) + 1)
    for roll in rolls:
        others = dict(zip(order, np.roll(order, roll), strict=True))
        shuffled += _count([pictures[others[i]] for i in range(num)], claims, score)
    return {
        category: {
            "right": right[category, True] / total,
            "shuffled": shuffled[category, True] / total / len(rolls) if rolls else None,
            "num": total,
        }
        for category in categories
        if (total := right[category, True] + right[category, False])
    }


def _count(pictures: Sequence[Any], claims: Sequence[Any], score: Callable[[Any, Any], dict[str, bool]]) -> Counter:
    pairs = zip(pictures, claims, strict=True)
    return Counter(item for picture, claim in pairs for item in score(picture, claim).items())


def format_table(result: Rates) -> str:
    """Return rates as a Markdown table, in percent."""

    def percent(rate: float | None) -> str:
        return "-" if rate is None else f"{100 * rate:.1f}"

    rows = ["| category | right % | shuffled % | prompts |", "|---|---:|---:|---:|"]
    rows += [
        f"| {name} | {percent(row['right'])} | {percent(row['shuffled'])} | {row['num']} |"
        for name, row in result.items()
    ]
    return "\n".join(rows)
