"""Comparison of sampling options: consistency of stages, combinations, the Pareto front."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagen_jax import resize
from imagen_jax.evaluation.metrics import METRICS, Metric, Samples


def combinations(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of one value per option, the last option changing fastest."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def consistency(small: np.ndarray, big: np.ndarray) -> np.ndarray:
    """Return how well enlarged pictures agree with the pictures that they were made from, [N] in dB.

    It is the peak signal-to-noise ratio of `big` [N, H, W, C], averaged down, to `small` [N, h, w, C], in [-1, 1].
    """
    error = np.mean((np.asarray(resize.area(big, small.shape[1:3])) - small) ** 2, axis=(1, 2, 3))
    return 10 * np.log10(4 / np.maximum(error, 1e-12))


@METRICS.register("consistency")
class Consistency(Metric):
    """`consistency` of the results with those of the stage before."""

    needs = ("low_res",)

    def values(self, samples: Samples) -> np.ndarray:
        return consistency(samples.low_res, samples.images)


def pareto(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Return the indices, by rising cost, of the settings that no other beats in both cost and value.

    Args:
      cost: [N], lower is better.
      value: [N], higher is better; settings with NaN are left out.
    """
    order = np.lexsort((-np.asarray(value), cost))
    front, best = [], -np.inf
    for i in order:
        if value[i] > best:
            front.append(int(i))
            best = value[i]
    return np.array(front, int)


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a Markdown table, numbers with four digits."""
    text = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([text(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
