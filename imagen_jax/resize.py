"""The resizes of the project: area averaging down, bilinear up; of DeepFloyd IF also `bilinear_corners`.

Training, sampling and evaluation all go through these functions, so that a picture has the same
pixels wherever it is made smaller or larger. Both are separable and linear: each is two small
matrices [out, in], one for the rows and one for the columns. They take numpy arrays and jax arrays
(inside jit too) and return the same kind, in float32. In numpy the matrices are sparse: a few
weights for each new pixel.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
from collections.abc import Callable, Iterator

import numpy as np

from imagen_jax.checks import Verbatim, is_whole, require

_BLOCK_ROWS = 2**19  # floats of the picture that are worked on at once, to stay in the cache
_BLOCK_WEIGHTS = 2**16  # weights of the sparse matrix that serves several lines of pixels at once


def area(x, size: int | tuple[int, int]):
    """Make pictures smaller by averaging the exact (fractional) area under each new pixel.

    Args:
      x: [..., H, W, C], uint8 or float; numpy or jax.
      size: (h, w) or one int for both, each at most the picture's own.

    Returns:
      [..., h, w, C] float32 in the units of x. An integer factor is the plain mean of each block.

    Raises:
      ValueError: x has fewer than 3 axes, or size is not positive or is larger than the picture.
    """
    return _resize(x, size, "area")


def bilinear(x, size: int | tuple[int, int]):
    """Make pictures larger by linear interpolation between pixel centres, edges clamped.

    Args:
      x, size: those of `area`; the size is at least the picture's own.

    Result and errors are those of `area`.
    """
    return _resize(x, size, "bilinear")


def bilinear_corners(x, size: tuple[int, int]):
    """Make pictures larger by linear interpolation that keeps the corner pixels in the corners.

    It is torch's interpolation with align_corners=True, which DeepFloyd IF was trained with.

    Args:
      x: [..., H, W, C] float; jax.
      size: (h, w), each at least the picture's own.

    Result and errors are those of `area`.
    """
    _check_pictures(x, "bilinear_corners")
    height, width = _pair(size)
    old = x.shape[-3:-1]
    is_right = 0 < old[0] <= height and 0 < old[1] <= width
    require(is_right, "size of bilinear_corners()", f"be at least that of the picture, {old[0]}x{old[1]}", size)
    import jax

    rows, columns = _corner_matrix(old[0], height), _corner_matrix(old[1], width)
    highest = jax.lax.Precision.HIGHEST
    return jax.numpy.einsum("oh,pw,...hwc->...opc", rows, columns, x.astype(np.float32), precision=highest)


def _corner_matrix(num_in: int, num_out: int) -> np.ndarray:
    """Return weights [num_out, num_in] whose first and last new pixels are the first and last old ones."""
    position = np.linspace(0, num_in - 1, num_out)[:, None]
    return np.maximum(1 - np.abs(position - np.arange(num_in)), 0).astype(np.float32)


def to_size(x, size: int | tuple[int, int], part: tuple[range, range] | None = None, out: np.ndarray | None = None):
    """Resize each side as it needs: area averaging if it gets smaller, bilinear if it gets larger.

    Args:
      x: [..., H, W, C], uint8 or float; numpy or jax.
      size: (h, w) or one int for both.
      part: the rows and the columns of the result to compute, all if None; a range that runs backwards mirrors.
      out: where the result is written, float32, contiguous; numpy only.

    Returns:
      [..., h, w, C] float32 in the units of x, with the sides of `part` if it is given.

    Raises:
      ValueError: x has fewer than 3 axes, or size is not positive, or part lies outside of it.
    """
    height, width = _pair(size)
    for side, pixels in zip((height, width), part or (), strict=part is not None):
        is_inside = bool(pixels) and 0 <= pixels[0] < side and 0 <= pixels[-1] < side
        require(is_inside, "part", f"lie in a result of {height}x{width} pixels", part)
    if out is not None and (_is_jax(x) or out.dtype != np.float32 or not out.flags.c_contiguous):
        raise ValueError("out must be a contiguous float32 array, and x a numpy array; one of them is not.")
    return _resize(x, (height, width), "to_size", part, out)


def area_by_rows(
    read: Callable[[int, int], np.ndarray], shape: tuple[int, int, int], size: tuple[int, int]
) -> np.ndarray:
    """Return the `area` of a picture that never exists as a whole, to rounding.

    Args:
      read: read(first, last) -> these rows, [last - first, W, C] uint8 or float.
      shape: (H, W, C) of the picture.
      size: (h, w), each at most the picture's own.

    Returns:
      [h, w, C] float32.
    """
    (height, width, channels), (new_height, new_width) = shape, size
    is_smaller = 1 <= new_height <= height and 1 <= new_width <= width
    require(is_smaller, "size of area_by_rows()", f"be at most that of the picture, {height}x{width}", size)
    length = width * channels
    out = np.empty((new_height, new_width * channels), np.float32)
    rows = max(1, _BLOCK_ROWS // length)
    for new, old, matrix in _row_matrices(height, new_height, range(new_height), rows):
        lines = np.zeros((matrix.shape[0], length), np.float32)
        step = max(1, 8 * _BLOCK_ROWS // length)  # of a wide and flat picture many rows become one
        for first in range(old.start, old.stop, step):
            last = min(first + step, old.stop)
            part = read(first, last).reshape(-1, length).astype(np.float32)
            lines += matrix[:, first - old.start : last - old.start] @ part
        _along_lines(lines, new_width, range(new_width), channels, out[new])
    return out.reshape(new_height, new_width, channels)


def _weights(num_in: int, num_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each new pixel the old pixels that it is made of and their shares, both [num_out, n].

    A share of 0 may stand beside a pixel beyond the end.
    """
    if num_out <= num_in:  # the area under the new pixel
        # Bounds are whole numbers when a line of pixels is num_in * num_out long: nothing is rounded.
        bounds = np.arange(num_out + 1) * num_in
        start, stop = bounds[:-1, None], bounds[1:, None]
        pixel = start // num_out + np.arange(-(-num_in // num_out) + 1)
        overlap = np.minimum(stop, (pixel + 1) * num_out) - np.maximum(start, pixel * num_out)
        return pixel, np.maximum(overlap, 0) / num_in
    position = (np.arange(num_out) + 0.5) * num_in / num_out - 0.5
    position = np.clip(position, 0, num_in - 1)[:, None]
    pixel = np.floor(position).astype(int) + np.arange(2)  # the two nearest centres
    return pixel, np.maximum(1 - np.abs(position - pixel), 0)


@functools.lru_cache(maxsize=128)
def matrix(num_in: int, num_out: int) -> np.ndarray:
    """Return the weights as a matrix [num_out, num_in] float32, whose rows sum to 1."""
    pixel, weight = _weights(num_in, num_out)
    dense = np.zeros((len(pixel), num_in), np.float32)
    used = weight > 0
    dense[used.nonzero()[0], pixel[used]] = weight[used]
    dense.setflags(write=False)  # it is shared through the cache
    return dense


def _resize(x, size, name: str, part=None, out=None):
    height, width = _pair(size)
    _check_pictures(x, name)
    old_height, old_width = x.shape[-3:-1]
    got = Verbatim(f"{old_height}x{old_width} pixels and size {height}x{width}")
    is_filled = min(height, width, old_height, old_width) >= 1
    require(is_filled, f"pictures for {name}()", "not be empty, before or after", got)
    smaller, larger = height <= old_height and width <= old_width, height >= old_height and width >= old_width
    rule, other = ("smaller", "bilinear") if name == "area" else ("larger", "area")
    is_right = {"area": smaller, "bilinear": larger, "to_size": True}[name]
    require(is_right, f"{name}()", f"make pictures {rule}", got, f"use {other}() for the other direction")
    rows, columns = part or (range(height), range(width))
    if _is_jax(x):
        x = _along_jax(x.astype(np.float32), height, rows, -3)
        return _along_jax(x, width, columns, -2)
    shape = (*x.shape[:-3], len(rows), len(columns), x.shape[-1])
    out = np.empty(shape, np.float32) if out is None else out
    require(out.shape == shape, "out", f"have the shape of the result, {shape}", out.shape)
    return _numpy(x, (height, width), rows, columns, out)


def _along_jax(x, size: int, part: range, axis: int):
    old = x.shape[axis]
    if size == old and part == range(size):
        return x
    import jax

    spec = "oh,...hwc->...owc" if axis == -3 else "ow,...hwc->...hoc"
    weights = matrix(old, size) if part == range(size) else matrix(old, size)[np.asarray(part)]
    # The default precision of TPUs and recent GPUs would multiply pixels in bf16 or tf32.
    highest = jax.lax.Precision.HIGHEST
    return jax.numpy.einsum(spec, weights, x, precision=highest)


def _numpy(x: np.ndarray, size: tuple[int, int], rows: range, columns: range, out: np.ndarray) -> np.ndarray:
    """Resize [..., H, W, C] to `out` [..., len(rows), len(columns), C].

    Sparse products run in this thread alone and let others run; BLAS would start threads in every loader thread.
    """
    height, width, channels = x.shape[-3:]
    count = math.prod(x.shape[:-3])
    pictures = x.reshape(count, height, width * channels)
    results = out.reshape(count, len(rows), len(columns) * channels)  # a view, for `out` is contiguous
    for picture, result in zip(pictures, results, strict=True):
        for new, lines in _row_blocks(picture, size[0], rows):
            _along_lines(lines, size[1], columns, channels, result[new])
    return out


def _row_blocks(picture: np.ndarray, size: int, part: range) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the new rows of a picture [H, W * C], a block at a time: which they are, and float32 [rows, W * C]."""
    height, length = picture.shape
    if size == height and part == range(size):
        yield slice(None), picture.astype(np.float32, copy=False)
        return
    for new, old, matrix in _row_matrices(height, size, part, max(1, _BLOCK_ROWS // length)):
        yield new, matrix @ picture[old].astype(np.float32, copy=False)


def _along_lines(x: np.ndarray, size: int, part: range, channels: int, out: np.ndarray) -> None:
    """Resize float32 [h, W * C] to `out` [h, len(part) * C]."""
    old = x.shape[1] // channels
    if size == old and part == range(size):
        out[:] = x
        return
    matrix, copies = _line_matrix(old, size, part, channels, len(x))
    for start in range(0, len(x), copies):
        start = min(start, len(x) - copies)  # the last lines may be done twice
        lot = slice(start, start + copies)
        out[lot] = (matrix @ x[lot].ravel()).reshape(copies, -1)


# Pictures and crops come in many sizes: these caches serve a data set of one size, and stay small.
@functools.lru_cache(maxsize=8)
def _row_matrices(num_in: int, num_out: int, part: range, rows: int) -> tuple:
    """Return the matrix of the rows in pieces: (new rows, old rows, CSR [new, old]), about `rows` old rows each."""
    pixel, weight = (table[np.asarray(part)] for table in _weights(num_in, num_out))
    step = max(1, rows * num_out // num_in)
    blocks = []
    for start in range(0, len(part), step):
        new = slice(start, min(start + step, len(part)))
        used = weight[new] > 0
        pixels = pixel[new][used]
        low, high = int(pixels.min()), int(pixels.max()) + 1
        matrix = _csr(pixels - low, weight[new][used], used.sum(1), high - low)
        blocks.append((new, slice(low, high), matrix))
    return tuple(blocks)


@functools.lru_cache(maxsize=8)
def _line_matrix(num_in: int, num_out: int, part: range, channels: int, lines: int) -> tuple:
    """Return a CSR that maps several whole lines, laid end to end, to their new pixels; and how many lines."""
    pixel, weight = (table[np.asarray(part)] for table in _weights(num_in, num_out))
    used = weight > 0
    # One line: a pixel's channels lie side by side, and each has the weights of the pixel.
    used, weight = (np.repeat(table, channels, axis=0) for table in (used, weight))
    pixel = (pixel[:, None] * channels + np.arange(channels)[:, None]).reshape(used.shape)[used]
    copies = max(1, min(lines, _BLOCK_WEIGHTS // len(pixel)))
    first = np.arange(copies, dtype=np.int32)[:, None] * (num_in * channels)
    pixel = (pixel.astype(np.int32) + first).ravel()
    counts, weight = (np.tile(table, copies) for table in (used.sum(1), weight[used].astype(np.float32)))
    return _csr(pixel, weight, counts, copies * num_in * channels), copies


def _csr(pixel: np.ndarray, weight: np.ndarray, counts: np.ndarray, num_in: int):
    """Return the matrix [len(counts), num_in] with so many entries in each row: old pixel and weight."""
    import scipy.sparse

    starts = np.zeros(len(counts) + 1, np.int32)
    np.cumsum(counts, out=starts[1:])
    entries = (weight.astype(np.float32, copy=False), pixel.astype(np.int32, copy=False), starts)
    return scipy.sparse.csr_array(entries, shape=(len(counts), num_in))


def _is_jax(x) -> bool:
    jax = sys.modules.get("jax")  # if nobody has imported jax, x is not a jax array
    return jax is not None and isinstance(x, jax.Array)


def _pair(size) -> tuple[int, int]:
    """Return (height, width) of `size`."""
    sides = size if isinstance(size, tuple | list) else (size, size)
    is_right = len(sides) == 2 and all(map(is_whole, sides))
    require(is_right, "size", "be a whole number of pixels, or (h, w)", size)
    return operator.index(sides[0]), operator.index(sides[1])


def _check_pictures(x, name: str) -> None:
    is_array = isinstance(x, np.ndarray) or _is_jax(x)
    require(is_array, f"pictures for {name}()", "be an array [..., H, W, C]", x)
    require(x.ndim >= 3, f"pictures for {name}()", "be [..., H, W, C]", Verbatim(f"shape {x.shape}"))
