"""Comparing sampling options: scores of every setting, the Pareto front."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from imagen_jax import resize


def combinations(choices: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Every combination of one value per option, the last option changing fastest."""
    return [dict(zip(choices, values, strict=True)) for values in itertools.product(*choices.values())]


def consistency(small: np.ndarray, big: np.ndarray) -> np.ndarray:
    """How well enlarged pictures agree with what they were made from: [N] dB.

    The peak signal-to-noise ratio of `big` [N, H, W, C], averaged down, to `small` [N, h, w, C]; in [-1, 1].
    """
    error = np.mean((np.asarray(resize.area(big, small.shape[1:3])) - small) ** 2, axis=(1, 2, 3))
    return 10 * np.log10(4 / np.maximum(error, 1e-12))


def pareto(cost: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Indices, by rising cost, of the settings that no other beats in both: [N] each, NaN never on it."""
    order = np.lexsort((-np.asarray(value), cost))
    front, best = [], -np.inf
    for i in order:
        if value[i] > best:
            front.append(int(i))
            best = value[i]
    return np.array(front, int)


def format_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Markdown; numbers with four digits."""
    text = lambda value: f"{value:.4g}" if isinstance(value, float) else str(value)
    names = list(rows[0])
    lines = [names, ["---"] * len(names), *([text(row[name]) for name in names] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
