"""The cascade with one program per device, by jax.pmap."""

from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from imagen_jax import checks, sharding
from imagen_jax.sampling.cascade import raise_if_any_broken, run_cascade
from imagen_jax.sampling.plan import Plan, plan_cascade
from imagen_jax.sampling.recipe import Recipe


def pmap_sample_cascade(stages: Any, text: Any, keys: jax.Array, **options: Any) -> Any:
    """Sample as `sample_cascade` does, with one program per device: the same images, to rounding.

    Args:
      stages: as for `sample_cascade`; every device gets a whole copy, at every call unless they lie there already, as
        `replicate(stages, make_mesh())` puts them.
      text, keys, **options: as for `sample_cascade`. The batch is split over this process's devices, padded
        with copies of its last row and cropped again.

    Returns:
      what `sample_cascade` returns.
    """
    return_all = checks.boolean("return_all", options.pop("return_all", False))
    plan = plan_cascade(stages, text, keys, **options)  # values are not known to the program
    batch, devices = len(keys), jax.local_device_count()
    rows = -(-batch // devices)

    def split(leaf: jax.Array) -> jax.Array:
        return sharding.pad_rows(leaf, devices * rows).reshape(devices, rows, *leaf.shape[1:])

    each = lambda leaf: jnp.broadcast_to(leaf, (batch, *leaf.shape[1:]))
    by_row = tuple(own.replace(negative=jax.tree.map(each, own.negative), weak=None) for own in plan.inputs)
    weak = tuple(own.weak for own in plan.inputs)
    program = _pmapped(plan.recipes)
    images, infos = program(plan.stages, plan.values, weak, *jax.tree.map(split, (plan.texts, keys, by_row)))
    merge = lambda leaf: leaf.reshape(devices * rows, *leaf.shape[2:])[:batch]
    images, infos = jax.tree.map(merge, (images, infos))
    raise_if_any_broken(plan.stages, infos)
    return images if return_all else images[-1]


# Inputs of `sample_cascade` with one row per image.
BY_IMAGE = ("low_res", "image", "mask", "control", "z_1")


@lru_cache(maxsize=32)
def _pmapped(recipes: tuple[Recipe, ...]) -> Any:
    def program(stages, values, weak, texts, keys, by_row):
        inputs = tuple(own.replace(weak=each) for own, each in zip(by_row, weak, strict=True))
        return run_cascade(Plan(stages, texts, keys, inputs, values, recipes))

    return jax.pmap(program, axis_name="devices", in_axes=(None, None, None, 0, 0, 0))
