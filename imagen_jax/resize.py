"""The two resizes of the project: area averaging down, bilinear up.

Training, sampling and evaluation all go through these two functions, so that a picture has the same
pixels wherever it is made smaller or larger. Both are separable and linear: each is two small
matrices [out, in], one for the rows and one for the columns. They take numpy arrays and jax arrays
(inside jit too) and return the same kind, in float32.
"""

from __future__ import annotations

import functools
import operator
import sys

import numpy as np


def area(x, size: int | tuple[int, int]):
    """Makes pictures smaller by averaging the exact (fractional) area under each new pixel.

    Args:
      x: [..., H, W, C], uint8 or float; numpy or jax.
      size: (h, w) or one int for both, each at most the picture's own.

    Returns:
      [..., h, w, C] float32 in the units of x. An integer factor is the plain mean of each block.

    Raises:
      ValueError: x has fewer than 3 axes, or size is not positive or is larger than the picture.
    """
    return _resize(x, size, area_matrix, "area")


def bilinear(x, size: int | tuple[int, int]):
    """Makes pictures larger by linear interpolation between pixel centres, edges clamped.

    Args:
      x: [..., H, W, C], uint8 or float; numpy or jax.
      size: (h, w) or one int for both, each at least the picture's own.

    Returns:
      [..., h, w, C] float32 in the units of x.

    Raises:
      ValueError: x has fewer than 3 axes, or size is smaller than the picture.
    """
    return _resize(x, size, bilinear_matrix, "bilinear")


@functools.lru_cache(maxsize=128)
def area_matrix(num_in: int, num_out: int) -> np.ndarray:
    """[num_out, num_in] float32: share of each old pixel in each new one; rows sum to 1."""
    # Bounds are whole numbers when a line of pixels is num_in * num_out long: nothing is rounded.
    old = np.arange(num_in + 1) * num_out
    new = np.arange(num_out + 1) * num_in
    overlap = np.minimum(new[1:, None], old[None, 1:]) - np.maximum(new[:-1, None], old[None, :-1])
    return _frozen(np.maximum(overlap, 0) / num_in)


@functools.lru_cache(maxsize=128)
def bilinear_matrix(num_in: int, num_out: int) -> np.ndarray:
    """[num_out, num_in] float32: linear weights of the two nearest pixel centres; rows sum to 1."""
    position = (np.arange(num_out) + 0.5) * num_in / num_out - 0.5
    position = np.clip(position, 0, num_in - 1)
    return _frozen(np.maximum(1 - np.abs(position[:, None] - np.arange(num_in)), 0))


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix = matrix.astype(np.float32)
    matrix.setflags(write=False)  # it is shared through the cache
    return matrix


@functools.lru_cache(maxsize=128)
def _taps(matrix, num_in: int, num_out: int) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """The same matrix by its few non-zero diagonals: pairs of (old pixel [out], weight [out])."""
    dense = matrix(num_in, num_out)
    width = int((dense > 0).sum(1).max())
    first = np.minimum((dense > 0).argmax(1), num_in - width)
    return tuple((first + k, dense[np.arange(num_out), first + k]) for k in range(width))


def _resize(x, size, matrix, name):
    height, width = _pair(size)
    if x.ndim < 3:
        raise ValueError(f"{name}() takes pictures [..., H, W, C], got an array of shape {x.shape}.")
    old_height, old_width = x.shape[-3:-1]
    fits = height <= old_height and width <= old_width
    if name == "bilinear":
        fits = height >= old_height and width >= old_width
    if not fits or min(height, width, old_height, old_width) < 1:
        rule, other = ("smaller", "bilinear") if name == "area" else ("larger", "area")
        raise ValueError(
            f"{name}() only makes pictures {rule}: got {old_height}x{old_width} pixels and size "
            f"{height}x{width}; use {other}() for the other direction."
        )
    along = _along_jax if _is_jax(x) else _along_numpy
    x = along(matrix, x.astype(np.float32), height, -3)
    return along(matrix, x, width, -2)


def _along_jax(matrix, x, size: int, axis: int):
    if x.shape[axis] == size:
        return x
    import jax

    spec = "oh,...hwc->...owc" if axis == -3 else "ow,...hwc->...hoc"
    # The default precision of TPUs and recent GPUs would multiply pixels in bf16 or tf32.
    highest = jax.lax.Precision.HIGHEST
    return jax.numpy.einsum(spec, matrix(x.shape[axis], size), x, precision=highest)


def _along_numpy(matrix, x: np.ndarray, size: int, axis: int) -> np.ndarray:
    # Not a matrix product: BLAS would start its own threads inside every loader thread, and most of
    # the matrix is zeros.
    if x.shape[axis] == size:
        return x
    total = 0.0
    for pixel, weight in _taps(matrix, x.shape[axis], size):
        total += x.take(pixel, axis) * weight.reshape((-1,) + (1,) * (-1 - axis))
    return total


def _is_jax(x) -> bool:
    jax = sys.modules.get("jax")  # if nobody has imported jax, x is not a jax array
    return jax is not None and isinstance(x, jax.Array)


def _pair(size) -> tuple[int, int]:
    height, width = size if isinstance(size, (tuple, list)) else (size, size)
    return operator.index(height), operator.index(width)
