"""Pictures of a data set beside which metrics lay results."""

from collections.abc import Sequence

import numpy as np

from imagen_jax import resize
from imagen_jax.checks import Verbatim, require
from imagen_jax.data import transforms
from imagen_jax.evaluation.frechet import CELL


def reference_pictures(images: Sequence[np.ndarray], size: tuple[int, int], option: str = "images") -> np.ndarray:
    """Return the middle of each picture, with the aspect of the results, at one size.

    Args:
      images: N arrays [H, W, C] with values 0 to 255, of any sizes.
      size: (height, width) of the results.
      option: what named the pictures, for messages.

    Returns:
      [N, h, w, C] float32 in [-1, 1], of the size of the results, or of the smallest picture if that is smaller.

    Raises:
      ValueError: a picture is smaller than 8x8 pixels (`CELL`).
    """
    parts = [image[transforms.middle(*image.shape[:2], size)] for image in images]
    sides = np.array([part.shape[:2] for part in parts])
    small = tuple(sides.min(axis=0).tolist())
    rule = f"have pictures of at least {CELL}x{CELL} pixels for a metric that compares them"
    require(min(small) >= CELL, option, rule, Verbatim(f"one of {small[0]}x{small[1]}"))
    common = tuple(map(min, zip(small, size, strict=True)))
    return np.stack([transforms.to_unit(resize.area(part, common)) for part in parts])
