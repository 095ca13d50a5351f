"""Work and memory of traced programs against what can be counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from imagen_jax import tracing

F32 = 4


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_work_of_products():
    program = tracing.trace(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), array(3, 4, 5), array(3, 5, 6))
    assert tracing.flops(program) == 2 * 3 * 4 * 5 * 6


@pytest.mark.parametrize("stride", [1, 2])
def test_work_of_a_convolution_and_of_its_gradients(stride):
    """Each gradient takes as many multiplications as the convolution itself."""
    x, kernel = array(2, 8, 8, 3), array(3, 3, 3, 5)
    options = {"padding": [(1, 1)] * 2, "dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    conv = lambda x, kernel: jax.lax.conv_general_dilated(x, kernel, (stride, stride), **options)
    forward = 2 * (2 * (8 // stride) ** 2 * 5) * (9 * 3)
    assert tracing.flops(tracing.trace(conv, x, kernel)) == forward
    both = tracing.trace(jax.grad(lambda x, kernel: jnp.sum(jnp.sin(conv(x, kernel))), (0, 1)), x, kernel)
    assert tracing.flops(both) == 3 * forward


def test_work_in_loops_is_counted_as_often_as_they_run():
    product = lambda c, _: (c @ c, None)
    program = tracing.trace(lambda c: jax.lax.scan(product, c, length=7)[0], array(4, 4))
    assert tracing.flops(program) == 7 * 2 * 4**3
    unknown = tracing.trace(
        lambda c: jax.lax.while_loop(lambda c: c[0, 0] < 1, lambda c: c @ c, c), array(4, 4)
    )
    assert tracing.flops(unknown, trip_count=5) == 5 * 2 * 4**3


def test_what_nobody_reads_is_no_work():
    def wasteful(a):
        jnp.dot(a, a)
        return a + 1

    assert tracing.flops(tracing.trace(wasteful, array(8, 8))) == 0


def test_recomputation_is_work():
    layer = lambda w, x: jnp.sin(jnp.sin(x @ w) @ w)
    loss = lambda f: jax.grad(lambda w: jnp.sum(f(w, f(w, jnp.ones((8, 8))))))
    plain = tracing.flops(tracing.trace(loss(layer), array(8, 8)))
    again = tracing.flops(tracing.trace(loss(jax.checkpoint(layer)), array(8, 8)))
    assert plain < again <= plain + 4 * 2 * 8**3


def test_memory_of_a_chain_is_two_arrays():
    """Each product's operand is free once it has been read; elementwise work is fused."""

    def chain(x, w):
        for _ in range(5):
            x = jnp.tanh(x @ w)
        return jnp.sum(x)

    peak = tracing.peak_memory(tracing.trace(chain, array(64, 64), array(64, 64)))
    assert 2 * 64 * 64 * F32 <= peak <= 3 * 64 * 64 * F32


def test_memory_of_a_gradient_grows_with_the_layers_and_remat_saves_it():
    def loss(remat, w, x):
        layer = lambda x, w: jnp.sin(jnp.sin(x @ w) @ w)
        for _ in range(6):
            x = (jax.checkpoint(layer) if remat else layer)(x, w)
        return jnp.sum(x)

    size = 256 * 32 * F32
    peak = {
        remat: tracing.peak_memory(
            tracing.trace(jax.grad(lambda w, x, r=remat: loss(r, w, x)), array(32, 32), array(256, 32))
        )
        for remat in (False, True)
    }
    assert peak[False] >= 12 * size  # two a layer
    assert 5 * size < peak[True] < 0.8 * peak[False]


def test_gradients_are_shared_as_the_parameters_are():
    def grads(w, x):
        return jax.grad(lambda w: jnp.sum((x @ w) ** 2))(w) * 2

    program = tracing.trace(lambda w, x: jnp.sum(grads(w, x)), array(128, 512), array(4, 128))
    whole, shared = tracing.peak_memory(program), tracing.peak_memory(program, {(128, 512): 8})
    assert whole - shared == 128 * 512 * F32 * 7 // 8
