"""Kinds and FLOPs of the operations of compiled programs."""

import re

import jax
import jax.numpy as jnp
import pytest

from imagen_jax.planning import hlo

# Short for: at=, where an operation comes from; by= and back=, the attributes of a convolution and its input gradient.
SHORT = """HloModule jit_step, entry_computation_layout={()->f32[]}

%fused_norm (p.0: f32[2,8,8,4]) -> f32[2,8,8,4] {
  %p.0 = f32[2,8,8,4] parameter(0)
  %m = f32[2,8,8,4] multiply(%p.0, %p.0), at="jit(step)/jvp(UNet)/down_0/norm_1/mul"
  %n = f32[2,8,8,4] add(%m, %p.0), at="jit(step)/jvp(UNet)/down_0/norm_1/add"
  ROOT %r = f32[2,8,8,4] add(%n, %p.0), at="jit(step)/jvp(UNet)/down_0/add"
}

%fused_product (p.1: f32[8,16], p.2: f32[16,4]) -> f32[8,4] {
  %p.1 = f32[8,16] parameter(0)
  %p.2 = f32[16,4] parameter(1)
  ROOT %dot.0 = f32[8,4] dot(%p.1, %p.2), lhs_contracting_dims={1}, at="jit(step)/jvp(UNet)/middle_0/attention/dot"
}

%body (state: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %w = f32[16,4] parameter(1)
  %x = f32[8,16] parameter(2)
  %fusion.1 = f32[8,4] fusion(%x, %w), kind=kCustom, calls=%fused_product
  ROOT %out = (s32[], f32[8,16]) tuple(%i, %x)
}

ENTRY %main (p: f32[2,8,8,4]) -> f32[] {
  %image = f32[2,8,8,4] parameter(0)
  %kernel = f32[3,3,4,6] parameter(1)
  %gradient = f32[2,8,8,6] parameter(2)
  %fusion.0 = f32[2,8,8,4] fusion(%image), kind=kLoop, calls=%fused_norm
  %conv.0 = f32[2,8,8,6] convolution(%image, %kernel), by=3x3, at="jit(step)/jvp(UNet)/down_0/conv_1/conv"
  %again.0 = f32[2,8,8,6] convolution(%image, %kernel), by=3x3, at="jit(step)/transpose(jvp())/rematted_computation/c"
  %conv.1 = f32[2,8,8,4] convolution(%gradient, %kernel), back=3x3, at="jit(step)/transpose(jvp(UNet))/conv_1/conv"
  %conv.2 = f32[6,3,3,4] convolution(%image, %gradient), window={size=8x8 pad=1_1x1_1}, dim_labels=f01b_i01o->b01f
  %conv.3 = (f32[3,3,4,6], u8[0]) custom-call(%image), by=3x3, custom_call_target="__cudnn$convBackwardFilter"
  %moment = f32[6] multiply(%a, %b), at="jit(step)/optimiser/mul"
  %clipped = f32[6] clamp(%a, %b, %c), at="jit(step)/while/body/thresholding/jit(clip)/min"
  %eps = f32[6] multiply(%a, %b), at="jit(step)/jvp(vmap(jit(_normal)))/jit(_normal_real)/mul"
  %moved = f32[6] copy(%eps)
  %window = f32[6] reduce-window(%eps), to_apply=%add
  %sum = f32[6] all-reduce(%moved), replica_groups={}
  %loop = (s32[], f32[8,16]) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"5"}}
  ROOT %loss = f32[] add(%a, %b), at="jit(step)/jvp()/add"
}
"""
WINDOW = "window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_01io->b01f"
BACK = WINDOW.replace("01io", "01oi")
TEXT = re.sub(r'at="(.*)"', r'metadata={op_name="\1"}', SHORT.replace("by=3x3", WINDOW).replace("back=3x3", BACK))


def test_each_operation_has_a_kind():
    kinds = hlo.read(TEXT).kinds()
    assert set(kinds.values()) <= set(hlo.KINDS)
    shown = {
        "fusion.0": "norms and activations",
        "conv.0": hlo.FORWARD,
        "again.0": hlo.FORWARD,
        "conv.1": hlo.INPUT_GRADIENT,
        "conv.2": hlo.KERNEL_GRADIENT,
        "conv.3": hlo.KERNEL_GRADIENT,
        "fusion.1": "attention",
        "moment": "optimiser",
        "clipped": "thresholding",
        "eps": "random numbers",
        "moved": "copies",
        "window": "other",
        "sum": "communication",
        "loss": "other",
    }
    assert {name: kinds[name] for name in shown} == shown
    assert not {"loop", "dot.0", "m"} & set(kinds)  # a loop's time is that of its body; the others are fused


def test_flops_count_each_turn_of_a_loop():
    program = hlo.read(TEXT)
    convolution, product = 2 * (2 * 8 * 8 * 6) * 9 * 4, 2 * 8 * 16 * 4
    assert program.flops_by_kind() == {
        hlo.FORWARD: 2 * convolution,
        hlo.INPUT_GRADIENT: convolution,
        hlo.KERNEL_GRADIENT: 2 * (6 * 3 * 3 * 4) * 64 * 2,
        "attention": 5 * product,
    }
    assert program.flops_repeated() == 4 * product


@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_a_real_convolution_are_told_apart(stride):
    x, kernel = jnp.ones((2, 8, 8, 4)), jnp.ones((3, 3, 4, 6))

    def loss(x, kernel):
        out = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), [(1, 1)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jnp.sum(jnp.sin(out))

    flops = hlo.read(jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, kernel).compile().as_text()).flops_by_kind()
    expected = 2 * (2 * (8 // stride) ** 2 * 6) * 9 * 4
    assert {hlo.FORWARD, hlo.INPUT_GRADIENT, hlo.KERNEL_GRADIENT} == set(flops)
    assert all(value == expected for value in flops.values())
