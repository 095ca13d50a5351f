"""A whole cascade as one program, compiled ahead of time."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from imagen_jax import checks, sharding
from imagen_jax.checks import Verbatim, require
from imagen_jax.generate import pmapped
from imagen_jax.generate.prompts import text_shape
from imagen_jax.sampling.cascade import raise_if_any_broken, run_cascade
from imagen_jax.sampling.inputs import Inputs, check_request, with_current_names
from imagen_jax.sampling.one_stage import check_params
from imagen_jax.sampling.plan import plan_cascade, select_stages
from imagen_jax.stage import Stage, image_keys
from imagen_jax.structs import TextCond


def compile_cascade(
    stages: tuple[Stage, ...], batch_size: int, *, fsdp: int = 1, return_all: bool = False, **options: Any
) -> tuple[Callable[..., Any], Any]:
    """Compile the whole cascade as one program, ahead of time, for one batch size.

    With a compilation cache (`compilation.use_compilation_cache`) the next process compiles nothing.

    Args:
      stages: as from `load_cascade`, or of `jax.ShapeDtypeStruct`s.
      batch_size: a multiple of the devices.
      fsdp: devices that share each copy of the parameters.
      return_all, **options: of `sample_cascade`; none that is an array.

    Returns:
      (sample, program): sample(stages, text, keys) -> what `sample_cascade` returns, for any number of
      images up to batch_size, with null=... where a stage needs it; program is the `jax.stages.Compiled`, with its
      cost and memory analysis.
    """
    mesh = sharding.make_mesh(fsdp)
    ways = sharding.num_batch_shards(mesh)
    batch_size = checks.whole("batch_size", batch_size, 1)
    require(batch_size % ways == 0, "batch_size", f"be a positive multiple of the {ways} devices", batch_size)
    return_all = checks.boolean("return_all", return_all)
    options = with_current_names(options)
    for name in {"text", "keys", "null", "negative", "weak", *pmapped.BY_IMAGE} & set(options):
        fix = "use sample_cascade inside jax.jit"
        rule = "be left out of a compiled cascade, which takes text, keys and null alone"
        require(options[name] is None, name, rule, options[name], fix)
    options = {name: value for name, value in options.items() if value is not None}
    chosen = select_stages(stages, options.get("start"), options.get("stop"))
    name, is_base = chosen[0].config.name, not chosen[0].config.is_super_resolution
    require(is_base, "start", "be the base stage in a compiled cascade", name)
    settings = stages[0].config.text
    configs = tuple(stage.config for stage in stages)
    text = text_shape(stages, batch_size)
    keys_shape = jax.eval_shape(lambda: image_keys(0, batch_size))
    has_null = any(config.network.reads_empty_caption for config in configs)
    null_shape = text_shape(stages, 1) if has_null else None
    program = (
        jax.jit(
            lambda stages, text, keys, null: run_cascade(plan_cascade(stages, text, keys, null=null, **options)),
            in_shardings=(*sharding.sampling_shardings(stages, mesh), sharding.replicated(mesh)),
        )
        .lower(stages, text, keys_shape, null_shape)
        .compile()
    )

    def sample(
        stages: tuple[Stage, ...], text: TextCond, keys: jax.Array, *, null: TextCond | None = None
    ) -> Any:
        for i, stage in enumerate(select_stages(stages)):
            check_params(f"stages[{i}]", stage)
        got = tuple(stage.config for stage in stages)
        rule = "have the configurations that the program was compiled for"
        require(got == configs, "stages", rule, Verbatim(f"others ({', '.join(c.name for c in got)})"))
        (text,), _ = check_request(text, keys, None, Inputs(), null=null)
        rule = "be given where a stage reads the empty caption, and only then"
        require((null is not None) == has_null, "null", rule, null, "give encoder.encode([''])")
        if keys.dtype == np.uint32:  # raw bits
            keys = jax.random.wrap_key_data(keys)
        is_right = keys.dtype == keys_shape.dtype
        require(is_right, "keys", f"be of {keys_shape.dtype}, as from image_keys", Verbatim(str(keys.dtype)))
        batch = len(keys)
        require(batch <= batch_size, "keys", f"have 1 to {batch_size} rows", batch)
        shape, got = (batch, settings.length, settings.width), text.embeddings.shape
        require(got == shape, "text", f"have embeddings {list(shape)}, as the program was compiled for", Verbatim(got))
        text = text.replace(embeddings=text.embeddings.astype(np.float32))
        stages = sharding.shard_params(stages, mesh)
        text, keys = sharding.pad_batch((text, keys), batch_size, mesh)
        images, infos = program(stages, text, keys, null and sharding.replicate(null, mesh))
        images, infos = jax.tree.map(lambda rows: rows[:batch], (images, infos))
        raise_if_any_broken(chosen, infos)
        return images if return_all else images[-1]

    return sample, program
