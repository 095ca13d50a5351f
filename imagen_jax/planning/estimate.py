"""Memory and time of a stage's train step or sampler, from shapes alone, without compiling."""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp

from imagen_jax import sharding, stage, tracing
from imagen_jax.chips import Chip
from imagen_jax.config import StageConfig, distilled
from imagen_jax.config.validation import require_steps, validate
from imagen_jax.sampling import one_stage
from imagen_jax.sampling.inputs import Inputs
from imagen_jax.sampling.recipe import recipe_and_values
from imagen_jax.stage import Stage
from imagen_jax.structs import TextCond
from imagen_jax.training import state as states
from imagen_jax.training import teacher
from imagen_jax.training.step import make_train_step
from imagen_jax.training.utilisation import batch_shapes, model_flops_per_image

Kind = Literal["train", "sample"]
UTILISATION = 0.5  # share of the peak that matrix products reach where nothing else is the limit
GATHERED_AHEAD = 0.25  # share of the parameters that the compiler keeps gathered in bfloat16; fitted to train steps


@dataclasses.dataclass(frozen=True)
class Plan:
    """Memory and work of one device in one step; for "sample" a step is a whole batch of images.
    """

    parameters: int
    replicated: float  # fraction of the state's bytes that is replicated on every device
    params_bytes: int
    ema_bytes: int
    optimizer_bytes: int
    input_bytes: int
    temporary_bytes: int  # activations, gradients, gathered parameters
    model_flops_per_image: int  # training: three forward passes
    flops: int  # including recomputation
    traffic: int
    collective_bytes: int
    ahead_bytes: int = 0  # what the compiler of a sampler may gather besides before its loop, in which it is the same

    @property
    def peak_bytes(self) -> int:
        state = self.params_bytes + self.ema_bytes + self.optimizer_bytes
        return state + self.input_bytes + self.temporary_bytes

    @property
    def intensity(self) -> float:
        """Operations per byte of HBM traffic."""
        return self.flops / max(1, self.traffic)

    def seconds(self, chip: Chip) -> dict[str, float]:
        """Return the seconds of compute, memory traffic and links, each alone; a step takes at least the longest."""
        return {
            "compute": self.flops / (UTILISATION * chip.flops),
            "memory": self.traffic / chip.bandwidth,
            "links": self.collective_bytes / chip.links,
        }


def planned(
    config: StageConfig,
    kind: Kind | Literal["cascade"],
    *,
    batch: int | None = None,
    fsdp: int | None = None,
    compute_dtype: str | None = None,
) -> StageConfig:
    """Return the checked configuration that a stage is planned with.

    Args:
      config: of the stage.
      kind: of program, or a cascade's programs.
      batch: images in a batch over all devices; None: those of `config`.
      fsdp: devices that share each copy of the state; None: those of `config`.
      compute_dtype: what "auto" is on the devices; None: left to the local devices.

    Raises:
      ValueError: as `validate`.
    """

    def change(part: str, **values: Any) -> StageConfig:
        return dataclasses.replace(config, **{part: dataclasses.replace(getattr(config, part), **values)})

    if batch is not None:
        config = change("optim", batch_size=batch)
    if fsdp is not None:
        config = change("run", fsdp=fsdp)
    if compute_dtype is not None and config.compute_dtype == "auto":
        config = dataclasses.replace(config, compute_dtype=compute_dtype)
    config = validate(distilled.with_sampling(config))
    if kind == "train":
        require_steps(config)
    if kind == "train" and config.distilled.steps and config.distilled.guidance_scale is None:
        config = change("distilled", guidance_scale=2.0)  # any other one costs the same
    return config


def sampler(config: StageConfig, rows: int) -> tuple[Any, dict[str, Any]]:
    """Return (a function that samples the stage from parameters and inputs, the shapes of those inputs)."""
    text = TextCond(
        jax.ShapeDtypeStruct((rows, config.text.length, config.text.width), jnp.float32),
        jax.ShapeDtypeStruct((rows, config.text.length), bool),
    )
    inputs = {"text": text, "keys": jax.eval_shape(lambda: stage.image_keys(0, rows))}
    if config.is_super_resolution:
        low = (rows, config.low_res_size, config.low_res_size, config.image_channels)
        inputs["low_res"] = jax.ShapeDtypeStruct(low, jnp.float32)

    def sample(params: Any, inputs: dict[str, Any]) -> jax.Array:
        given = Inputs(inputs.get("low_res"))
        recipe, values = recipe_and_values(config, config.sampling)
        return one_stage.run_stage(
            Stage(params, config), (inputs["text"],), inputs["keys"], given, recipe, values
        )[0]

    return sample, inputs


def sampled_params(config: StageConfig, mesh: Any, dtype: str) -> Any:
    """Return the shapes of the parameters that a stage is sampled with, in type `dtype`, with shardings on `mesh`."""
    shapes = jax.eval_shape(lambda: stage.init(config, jax.random.key(0)))
    shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, jnp.dtype(dtype)), shapes)
    shardings = sharding.state_sharding(shapes, mesh)
    return jax.tree.map(lambda s, d: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=d), shapes, shardings)


def estimate(config: StageConfig, kind: Kind, devices: int, dtype: str = "float32") -> Plan:
    """Return the plan of a stage on `devices` devices, sharded as its `run` says.

    Args:
      config: of the stage.
      kind: of program.
      devices: their number.
      dtype: of the parameters that are sampled with; training has float32.

    Raises:
      ValueError: batch or mesh do not divide; see `sharding.check_batch` and `sharding.make_mesh`.
    """
    run, optim = config.run, config.optim
    mesh = sharding.abstract_mesh(devices, run.fsdp, height=run.height)
    parts = optim.accumulation if kind == "train" else 1
    sharding.check_batch(optim.batch_size, parts, mesh)
    # A device with half of the rows of each image has the memory and work of one with half as many images.
    # Less than one image in each part counts as one.
    share = optim.batch_size / (sharding.num_batch_shards(mesh) * run.height)
    rows = math.ceil(share / parts) * parts
    alone = sharding.make_mesh(devices=jax.local_devices()[:1])
    small = dataclasses.replace(config, optim=dataclasses.replace(optim, batch_size=rows))
    bytes_of = lambda tree: sharding.byte_counts(tree).per_device
    if kind == "train":
        state = states.abstract_state(config, mesh)
        params, second = state.frozen or state.params, state.auxiliary
        held_params = (state.params, state.frozen, second and second.params)
        inputs = batch_shapes(config, rows)
        shapes = jax.eval_shape(lambda: states.new_state(small))
        taught_by = teacher.like_the_stage(small, shapes.params)
        program = tracing.trace(make_train_step(small, alone), shapes, inputs, taught_by)
        opt_states = (state.opt_state, second and second.opt_state)
        held = {"ema_bytes": bytes_of(state.ema_params), "optimizer_bytes": bytes_of(opt_states)}
    else:
        state = params = held_params = sampled_params(config, mesh, dtype)
        function, inputs = sampler(config, rows)
        shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype), params)
        program = tracing.trace(function, shapes, inputs)
        held, taught_by = {"ema_bytes": 0, "optimizer_bytes": 0}, None
    steps = math.ceil(config.sampling.steps * config.sampling.strength) + config.sampling.method("sampler").has_final
    flops = tracing.flops(program, steps)
    parameters = states.count(params)
    sharded = [leaf for leaf in jax.tree.leaves(params) if not leaf.sharding.is_fully_replicated]
    split = {tuple(sorted(leaf.shape)): run.fsdp for leaf in sharded}
    temporary = tracing.peak_memory(program, split)
    if kind == "sample" and dtype == "float32" and config.compute_dtype == "bfloat16":
        temporary += bytes_of(params) // 2  # a copy to compute with, made once before the loop
    if run.fsdp > 1:
        temporary += int(GATHERED_AHEAD * 2 * parameters)
    return Plan(
        parameters=parameters,
        replicated=sharding.byte_counts(state).replicated,
        params_bytes=bytes_of(held_params) + (0 if taught_by is None else bytes_of(params)),
        # Inputs are replicated on all devices that share the rows of an image.
        input_bytes=int(sum(map(tracing.size_of, jax.tree.leaves(inputs))) * share * run.height / rows),
        temporary_bytes=temporary,
        model_flops_per_image=model_flops_per_image(config) if kind == "train" else flops // rows,
        flops=int(flops * share / rows),
        traffic=int(tracing.traffic(program, steps) * share / rows),
        collective_bytes=_collective_bytes(config, kind, parameters, devices, steps),
        ahead_bytes=int((1 - GATHERED_AHEAD) * 2 * parameters) if kind == "sample" and run.fsdp > 1 else 0,
        **held,
    )


def _collective_bytes(config: StageConfig, kind: Kind, parameters: int, devices: int, steps: int) -> int:
    """Return the bytes of gathered parameters and reduced gradients in bfloat16; an all-reduce moves them twice."""
    copy = 2 * parameters
    fsdp = config.run.fsdp
    copies = devices // fsdp  # devices that share an image's rows hold a copy each
    if kind == "sample":
        return copy * steps if fsdp > 1 else 0
    passes = {"none": 1, "save_convs": 2, "full": 2}[config.run.remat] if fsdp > 1 else 0
    gathered = passes * copy * config.optim.accumulation
    scattered = copy * config.optim.accumulation if fsdp > 1 else 0
    reduced = 2 * copy // fsdp if copies > 1 else 0
    return gathered + scattered + reduced
