"""Fréchet distance between sets of pictures, or of any features.

It is the squared 2-Wasserstein distance of two Gaussians, as in FID (Heusel et al. 2017, arXiv:1706.08500).
`frechet_distance` and `statistics` take the features of any network; `picture_features` needs no pretrained one.
"""

import dataclasses
from typing import Any

import numpy as np

from imagen_jax import resize
from imagen_jax.evaluation.metrics import METRICS, Metric, Samples

CELL = 8  # the layout is a picture of 8x8 pixels; detail is the deviation from the mean of 8x8 pixels
TILES = 4  # detail is measured in 4x4 parts of the picture
# Gives both parts of the features similar variance over the pictures of `shapes` (summed variances 87 and 64). Without
# it the sampling error of the layout exceeds the detail: 500 pictures blurred by a pixel are as close as sharp ones.
DETAIL_WEIGHT = 8.0
_BATCH_SIZE = 256


def frechet_distance(mean_a: Any, cov_a: Any, mean_b: Any, cov_b: Any) -> float:
    """Return |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64; the covariances may be singular.

    Args:
      mean_a, mean_b: [D].
      cov_a, cov_b: [D, D], symmetric; eigenvalues below zero are treated as rounding errors.

    Raises:
      ValueError: sizes differ, a value is not finite, or a covariance is not symmetric.
    """
    mean_a, cov_a = _check_gaussian(mean_a, cov_a)
    mean_b, cov_b = _check_gaussian(mean_b, cov_b)
    if mean_a.shape != mean_b.shape:
        raise ValueError(
            f"both sides must have as many features; got {len(mean_a)} and {len(mean_b)}: "
            "compute them by one function."
        )
    # tr (A B)^(1/2) = tr (A^(1/2) B A^(1/2))^(1/2), the sum of the singular values of A^(1/2) B^(1/2). Roots of
    # eigenvalues near zero would have half of the digits only.
    cross = np.linalg.svd(_factor(cov_a).T @ _factor(cov_b), compute_uv=False).sum()
    trace = np.trace(cov_a) + np.trace(cov_b) - 2 * cross
    return max(0.0, float(((mean_a - mean_b) ** 2).sum() + trace))


def _factor(cov: np.ndarray) -> np.ndarray:
    """Return F [D, D] with F F^T = cov."""
    values, vectors = np.linalg.eigh(cov)
    # Eigenvalues of the size of rounding errors are set to zero, since their roots would be large.
    noise = len(cov) * np.finfo(np.float64).eps * abs(values).max()
    return vectors * np.sqrt(np.where(values > noise, values, 0.0))


def _check_gaussian(mean: Any, cov: Any) -> tuple[np.ndarray, np.ndarray]:
    mean, cov = np.asarray(mean, np.float64), np.asarray(cov, np.float64)
    if mean.ndim != 1 or not mean.size or cov.shape != (*mean.shape, *mean.shape):
        raise ValueError(
            f"a Gaussian must have a mean [D] and a covariance [D, D]; got {mean.shape} and {cov.shape}: "
            "pass what statistics() returns."
        )
    if not np.isfinite(mean).all() or not np.isfinite(cov).all():
        raise ValueError("means and covariances must be finite; got NaN or infinity: check the features.")
    if abs(cov - cov.T).max() > 1e-6 * abs(cov).max():
        raise ValueError(
            "a covariance must be symmetric; got another matrix: pass what statistics() returns."
        )
    return mean, cov


def statistics(features: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [D] and the unbiased covariance [D, D] of features [N, D], in float64.

    Raises:
      ValueError: another shape, fewer than two rows, or a value is not finite.
    """
    features = np.asarray(features, np.float64)
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(
            f"features must be [N, D] with N at least 2; got shape {features.shape}: pass more pictures."
        )
    return Moments().add(features).gaussian()


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and covariance of features that come in batches (Chan et al. 1979, STAN-CS-79-773, equations 2.1).

    Attributes:
      num: rows so far.
      mean: [D] float64.
      scatter: [D, D] float64, the sum of products of deviations from the mean.
    """

    num: int = 0
    mean: Any = 0.0
    scatter: Any = 0.0

    def add(self, features: Any) -> "Moments":
        """Return the moments with those of features [N, D] added; N is at least 1."""
        features = np.asarray(features, np.float64)
        if features.ndim != 2 or not len(features):
            raise ValueError(f"features must be [N, D] with N at least 1; got shape {features.shape}.")
        if not np.isfinite(features).all():
            raise ValueError("features must be finite; got NaN or infinity: check the pictures.")
        mean, count = features.mean(axis=0), len(features)
        centered = features - mean
        scatter = centered.T @ centered
        if not self.num:
            return Moments(count, mean, scatter)
        num, step = self.num + count, mean - self.mean
        scatter = self.scatter + scatter + np.outer(step, step) * (self.num * count / num)
        return Moments(num, self.mean + step * (count / num), scatter)

    def gaussian(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean [D] and the unbiased covariance [D, D]."""
        if self.num < 2:
            raise ValueError(f"features must have at least 2 rows; got {self.num}: pass more pictures.")
        return self.mean, self.scatter / (self.num - 1)


@METRICS.register("frechet")
class Frechet(Metric):
    """`frechet_distance` of the results to the pictures of the data set with the same captions, at the smaller size."""

    needs = ("reference",)
    min_num = 2

    def init(self) -> tuple[Moments, Moments]:
        return Moments(), Moments()

    def update(self, state: tuple[Moments, Moments], samples: Samples) -> tuple[Moments, Moments]:
        both = samples.images, samples.reference
        size = tuple(min(sides) // CELL * CELL for sides in zip(*(images.shape[1:3] for images in both), strict=True))
        return tuple(
            moments.add(picture_features(resize.area(images, size)))
            for moments, images in zip(state, both, strict=True)
        )

    def result(self, state: tuple[Moments, Moments]) -> float:
        generated, reference = state
        return frechet_distance(*generated.gaussian(), *reference.gaussian())


# ---- pictures ----


def picture_features(images: Any) -> np.ndarray:
    """Return the layout and the sharpness of pictures, [N, D] float32, D = 80 C.

    The layout has 64 C values: the picture averaged to 8x8 pixels (`resize.area`). The detail has 16 C values: the
    mean of each block of 8x8 pixels is subtracted, and the standard deviation of each of 4x4 tiles of H/4 x W/4 pixels
    is multiplied by 8 (`DETAIL_WEIGHT`), channel by channel. Both are in the units of the picture, row by row, channels
    last.

    Args:
      images: [N, H, W, C] float in [-1, 1]; H and W are multiples of 8.

    Raises:
      ValueError: other shapes, types or ranges.
    """
    images = check_pictures(images)
    if images.shape[1] % CELL or images.shape[2] % CELL:
        raise ValueError(
            f"sides must be multiples of {CELL}; got {images.shape[1]}x{images.shape[2]}: "
            "crop or resize them."
        )
    # In batches, since the blocks of all pictures at once would be another copy of them.
    starts = range(0, len(images), _BATCH_SIZE)
    return np.concatenate([_features(images[start : start + _BATCH_SIZE]) for start in starts])


def _features(images: np.ndarray) -> np.ndarray:
    num, height, width, channels = images.shape
    layout = resize.area(images, CELL)
    blocks = images.reshape(num, height // CELL, CELL, width // CELL, CELL, channels)
    rest = (blocks - blocks.mean(axis=(2, 4), keepdims=True)).reshape(images.shape)
    detail = rest.reshape(num, TILES, height // TILES, TILES, width // TILES, channels).std(axis=(2, 4))
    return np.concatenate([layout.reshape(num, -1), DETAIL_WEIGHT * detail.reshape(num, -1)], axis=1)


def check_pictures(images: Any) -> np.ndarray:
    """Return pictures [N, H, W, C] float in [-1, 1], N at least 1, as a float32 numpy array.

    Raises:
      ValueError: other shapes, types or ranges; values from -2 to 2 are accepted, since samples may exceed the range.
    """
    images = np.asarray(images)
    if images.ndim != 4 or not images.size:
        raise ValueError(
            f"pictures must be [N, H, W, C], N at least 1; got shape {images.shape}: stack them."
        )
    low, high = images.min(), images.max()
    # The comparison is false for NaN too.
    if images.dtype.kind in "biu" or not (low >= -2 and high <= 2):
        raise ValueError(
            f"pictures must be float in [-1, 1]; got {images.dtype} in [{low}, {high}]: rescale them."
        )
    return images.astype(np.float32, copy=False)


def distance(images_a: Any, images_b: Any) -> float:
    """Return the Fréchet distance between two sets of pictures over `picture_features`; 0 is best.

    It is not FID, whose features are those of an Inception network: it measures colors, composition, sharpness and
    their variety, but not what a picture shows. Like every such distance it is biased upward for small N: compare it at
    equal N only, and with the distance of two sets of real pictures, which is 4 to 6 for 500 pictures of `shapes` and 2
    to 3 for 1000. N should be at least twice D = 80 C.

    Args:
      images_a, images_b: [N, H, W, C] float in [-1, 1] with equal H, W and C; each N is at least 2.

    Raises:
      ValueError: other shapes, types or ranges.
    """
    images_a, images_b = check_pictures(images_a), check_pictures(images_b)
    if images_a.shape[1:] != images_b.shape[1:]:
        raise ValueError(
            f"both sets must have pictures of one size; got {images_a.shape[1:]} and {images_b.shape[1:]}: "
            "resize one of them."
        )
    of = lambda images: statistics(picture_features(images))
    return frechet_distance(*of(images_a), *of(images_b))
