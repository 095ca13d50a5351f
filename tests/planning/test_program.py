"""Exchanges between devices in compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import sharding
from imagen_jax.planning.program import Compiled, collectives

F32 = 4

HLO = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %gathered = bf16[16,32]{1,0:T(8,128)} all-gather(%part), dimensions={0}
  ROOT %out = (s32[], f32[8]) tuple(%i, %x)
}

%all-reduce-scatter.1 (input: bf16[24]) -> bf16[6] {
  %whole = bf16[24]{0} all-reduce(%input), to_apply=%add
  ROOT %own = bf16[6]{0} dynamic-slice(%whole, %place), dynamic_slice_sizes={6}
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %reduced = (f32[4]{0}, bf16[6]{0}) all-reduce(%a, %b), to_apply=%add
  %scattered = bf16[6]{0} fusion(%c), kind=kCustom, calls=%all-reduce-scatter.1
  %moved = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), source_target_pairs={{0,1}}
  %done = f32[8]{0} collective-permute-done(%moved)
  ROOT %loop = (s32[], f32[8]) while(%init), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_collectives_are_read_from_a_program():
    assert collectives(HLO) == {
        "all-gather": (3, 3 * 16 * 32 * 2),
        "all-reduce": (1, 4 * 4 + 6 * 2),
        "collective-permute": (1, 8 * 4),
        "reduce-scatter": (1, 24 * 2),
    }


def test_an_all_reduce_sends_its_result_twice():
    compiled = Compiled(0, 0, 0, 0, {"all-gather": (3, 5), "all-reduce": (1, 7), "reduce-scatter": (1, 11)}, 0.0)
    assert compiled.link_bytes == 5 + 2 * 7 + 11


def test_collectives_of_a_real_program():
    mesh = sharding.make_mesh()
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    program = (
        jax.jit(lambda x: jnp.sum(x, axis=0), in_shardings=rows, out_shardings=whole)
        .lower(np.zeros((8, 256), np.float32))
        .compile()
    )
    assert collectives(program.as_text()) == {"all-reduce": (1, 256 * F32)}
