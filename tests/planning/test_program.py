"""Exchanges between devices in compiled programs."""

import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax import sharding
from imagen_jax.planning.program import collectives

F32 = 4

HLO = """
%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(%a, %b)
}

%body (state: (s32[], f32[8])) -> (s32[], f32[8]) {
  %gathered = bf16[16,32]{1,0:T(8,128)} all-gather(%part), dimensions={0}
  ROOT %out = (s32[], f32[8]) tuple(%i, %x)
}

ENTRY %main (p: f32[8]) -> f32[8] {
  %reduced = (f32[4]{0}, bf16[6]{0}) all-reduce(%a, %b), to_apply=%add
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
    }


def test_collectives_of_a_real_program():
    mesh = sharding.make_mesh()
    rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
    program = (
        jax.jit(lambda x: jnp.sum(x, axis=0), in_shardings=rows, out_shardings=whole)
        .lower(np.zeros((8, 256), np.float32))
        .compile()
    )
    assert collectives(program.as_text()) == {"all-reduce": (1, 256 * F32)}
