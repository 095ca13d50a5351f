"""3x3 convolutions in 4/9 of the multiplications, for CPUs (Lavin & Gray, arXiv 1509.09308).

Every 2x2 pixels of the result come from 4x4 of the image. Of these, sums and differences are taken along both axes, 16
in all, each of which is multiplied by a matrix that is made of the kernel, and the results are added up again: F(2x2,
3x3), whose rounding errors are two to three times those of the plain convolution. The matrix products are what CPUs
spend their time on, and their libraries' convolutions reach the same rate; those of GPUs choose by themselves.
"""

from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange

SCOPE = "winograd"  # jax.named_scope of all that is done here
_MIN_CHANNELS = 64  # harmonic mean of input and output
_MIN_FLOPS = 1e9  # of the plain convolution: less takes a few milliseconds
_MAX_BYTES = 2**24  # of sums and differences at a time, which are four times the images: they stay in the cache


@jax.custom_jvp
def conv3x3(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the convolution [B, H, W, C'] of x [B, H, W, C], H and W even, padded by 1, and a kernel [3, 3, C, C'].

    On CPUs as above, elsewhere and where it is differentiated by `jax.lax.conv_general_dilated`: in train steps, which
    also have gradients to compute, the gain is lost.
    """
    return jax.lax.platform_dependent(x, kernel, cpu=_winograd, default=_plain)


@conv3x3.defjvp
def _differentiated(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    return jax.jvp(_plain, primals, tangents)


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    padding = ((1, 1), (1, 1))
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def pays(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `conv3x3` can compute this, and then is faster on CPUs by as much as it takes longer to compile.

    Sums and differences cost memory traffic, which many channels make up for, and 0.1 to 0.2 s of compilation.
    """
    (rows, height, width, channels), features = x.shape, kernel.shape[-1]
    is_possible = x.dtype == jnp.float32 and height % 2 == width % 2 == 0
    is_wide = 1 / channels + 1 / features <= 2 / _MIN_CHANNELS
    return is_possible and is_wide and 18 * rows * height * width * channels * features >= _MIN_FLOPS


@jax.named_scope(SCOPE)
def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # Without the barrier each of the 16 matrices is a program of its own: twice as long to compile.
    matrices = _of_kernel(jax.lax.optimization_barrier(_of_kernel(kernel, 0)), 1)
    matrices = rearrange(matrices, "p q c d -> (p q) c d")
    rows = len(x)
    most = max(1, _MAX_BYTES * rows // (4 * x.nbytes))
    at_once = max(n for n in range(1, rows + 1) if rows % n == 0 and n <= most)
    parts = rearrange(x, "(n b) h w c -> n b h w c", b=at_once)
    # A loop of one turn is none, once compiled.
    return rearrange(jax.lax.map(lambda part: _products(part, matrices), parts), "n b h w c -> (n b) h w c")


def _products(x: jax.Array, matrices: jax.Array) -> jax.Array:
    """Return the convolution [B, H, W, C'] of x [B, H, W, C] with the kernel that has these matrices [16, C, C']."""
    (rows, height, width, _), features = x.shape, matrices.shape[-1]
    tiles = _of_image(_of_image(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 1), 3)
    products = jnp.matmul(rearrange(tiles, "b p h q w c -> (p q) (b h w) c"), matrices)
    products = products.reshape(4, 4, rows, height // 2, width // 2, features)
    pixels = [jnp.stack(_pair(row), axis=3) for row in _pair(products)]
    return jnp.stack(pixels, axis=2).reshape(rows, height, width, features)


def _of_kernel(kernel: jax.Array, axis: int) -> jax.Array:
    """Return the kernel with 4 instead of 3 entries along `axis`: G k of the paper."""
    first, middle, last = (jax.lax.index_in_dim(kernel, i, axis, keepdims=False) for i in range(3))
    ends, middle = 0.5 * (first + last), 0.5 * middle
    return jnp.stack([first, ends + middle, ends - middle, last], axis)


def _of_image(x: jax.Array, axis: int) -> jax.Array:
    """Return x with the 2 n + 2 entries d of `axis` as [4, n] sums and differences of every four: B^T d of the paper.

    Indices, and not slices, since XLA makes fast loops of them.
    """
    starts = range(0, x.shape[axis] - 2, 2)
    entry = lambda *offsets: jnp.take(x, jnp.array([[i + j for i in starts] for j in offsets]), axis, mode="clip")
    sign = jnp.expand_dims(jnp.array([-1.0, 1, -1, -1]), [i for i in range(x.ndim + 1) if i != axis])
    return entry(0, 1, 2, 1) + sign * entry(2, 2, 1, 3)


def _pair(m: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the two results of the four entries of the first axis: A^T m of the paper."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]
