"""3x3 convolution with a kernel gradient that is fast on CPUs.

XLA computes the kernel gradient as a convolution with an image-sized kernel, which its CPU backend runs several times
slower than the forward pass. On CPUs this file uses matrix products over patches of a few images at a time (small
enough for the cache) instead.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax.sharding import gather_kernel_if_height_sharded

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_ROWS = 2048  # output pixels per matrix product; 1024 to 4096 were measured to be equally fast


def conv_general_dilated(
    x: jax.Array, kernel: jax.Array, window_strides: Sequence[int], padding: Any, **_: Any
):
    """Replacement of `jax.lax.conv_general_dilated` for `nn.Conv`.

    Args:
      x: [B, H, W, C].
      kernel: [KH, KW, C, C'].
      window_strides: (s, s).
      padding: ((low, high), (low, high)).

    Returns:
      [B, H', W', C'].
    """
    kernel = gather_kernel_if_height_sharded(kernel)
    return _conv(x, kernel, tuple(window_strides), tuple(tuple(pair) for pair in padding))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x: jax.Array, kernel: jax.Array, strides: tuple, padding: tuple) -> jax.Array:
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_DIMENSIONS)


def _forward(x, kernel, strides, padding):
    return _conv(x, kernel, strides, padding), (x, kernel)


def _backward(strides, padding, saved, grad):
    x, kernel = saved
    plain = partial(
        jax.lax.conv_general_dilated, window_strides=strides, padding=padding, dimension_numbers=_DIMENSIONS
    )
    (grad_x,) = jax.vjp(lambda x: plain(x, kernel), x)[1](grad)
    grad_kernel = jax.lax.platform_dependent(
        x,
        grad,
        cpu=partial(_kernel_gradient, kernel_shape=kernel.shape, strides=strides, padding=padding),
        default=lambda x, grad: jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](grad)[0],
    )
    return grad_x, grad_kernel


_conv.defvjp(_forward, _backward)


def _kernel_gradient(x: jax.Array, grad: jax.Array, *, kernel_shape: tuple, strides: tuple, padding: tuple):
    """Return the sum over pixels of patch^T grad, computed for a chunk of images at a time."""
    batch, rows, columns, features = grad.shape
    chunk = max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n * rows * columns <= _ROWS))
    x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
    split = lambda a: a.reshape(batch // chunk, chunk, *a.shape[1:])
    height, width = kernel_shape[:2]

    def add(total, part):
        x, grad = part
        patches = [
            x[:, i : i + rows * strides[0] : strides[0], j : j + columns * strides[1] : strides[1]]
            for i in range(height)
            for j in range(width)
        ]
        patches = jnp.concatenate([p[:, :rows, :columns] for p in patches], axis=-1).reshape(
            -1, kernel_shape[2] * height * width
        )
        return total + grad.reshape(-1, features).T @ patches, None

    total, _ = jax.lax.scan(
        add, jnp.zeros((features, height * width * kernel_shape[2]), x.dtype), (split(x), split(grad))
    )
    return total.T.reshape(kernel_shape)
