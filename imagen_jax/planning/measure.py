"""Measurements of a stage's train step or sampler on the local devices, on random pictures and text."""

import dataclasses
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from imagen_jax import sharding, stage
from imagen_jax.checks import Verbatim, error
from imagen_jax.config import StageConfig
from imagen_jax.data import pipeline, sources
from imagen_jax.planning import hlo, profiling, program
from imagen_jax.planning.estimate import Kind, estimate, sampled_params
from imagen_jax.planning.machine import Peaks, Seconds, clocks, measure_peaks, memory_limit, repeated
from imagen_jax.training import packing
from imagen_jax.training import state as states
from imagen_jax.training.utilisation import batch_shapes

BETWEEN = "between operations"
_TRACED_STEPS = 3
_NO_GRAPHS = {"xla_gpu_enable_command_buffer": ""}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A train step, or the sampling of a batch, on all devices; FLOPs and bytes are those of all devices together.

    Attributes:
      stage, kind, batch: what was run.
      device, num_devices, dtype: where, and the type that the network computes in.
      parameters: of the network.
      arrays: of the program's first argument, the state or the parameters; unpacked_arrays: before `training.packing`.
      stablehlo_lines: of the program before compilation.
      compilation: of the program, once; from its StableHLO, without tracing.
      step: of the train step or of all steps of a batch's sampling.
      images_per_s: of the median step.
      model_flops: by formula: products and convolutions, three forward passes in training, nothing computed twice.
      compiled_flops, compiled_bytes: the compiler's analysis of the program; loops' products for each turn, other
        operations in loops once.
      peaks: of this machine, measured after the steps, and on CPUs, which other work may share, before them too.
      model_utilisation, compiled_utilisation: shares of the product peak; bandwidth_utilisation: of the copy bandwidth.
      argument_bytes, temporary_bytes, peak_bytes: on each device, by the compiler's analysis.
      planned_peak_bytes: by `estimate`.
      in_use_bytes: the most that the allocator of the first device gave out; None where it does not tell.
      seconds_by_kind: of a traced step, by `hlo.KINDS` and BETWEEN; empty if the profiler names no operations.
      flops_by_kind: of products and convolutions in the compiled program, those inside libraries' calls not included.
      data: of making a batch on the host and copying it to the devices, which a run does beside its steps; None for the
        sampler.
      data_source: the data set that the batch was read from; None: only the copying was measured.
    """

    stage: str
    kind: Kind
    batch: int
    device: str
    num_devices: int
    dtype: str
    parameters: int
    arrays: int
    unpacked_arrays: int
    stablehlo_lines: int
    compilation: Seconds
    step: Seconds
    images_per_s: float
    model_flops: int
    compiled_flops: float
    compiled_bytes: float
    peaks: Peaks
    model_utilisation: float
    compiled_utilisation: float
    bandwidth_utilisation: float
    argument_bytes: int
    temporary_bytes: int
    peak_bytes: int
    planned_peak_bytes: int
    in_use_bytes: int | None
    seconds_by_kind: dict[str, float]
    flops_by_kind: dict[str, int]
    data: Seconds | None
    data_source: str | None


def measure(config: StageConfig, kind: Kind, steps: int, dtype: str = "float32") -> Measured:
    """Compile and run a stage's train step or sampler on the local devices.

    Args:
      config: of the stage; optim.batch_size is the batch, also of the sampler.
      kind: which of them.
      steps: number of timed runs, after one that is not.
      dtype: of the parameters that are sampled with; training has float32.

    Raises:
      ValueError: the batch does not divide among the devices, or does not fit their memory.
    """
    mesh = sharding.make_mesh(config.run.fsdp, height=config.run.height)
    plan = estimate(config, kind, mesh.size, dtype)
    abstract = states.abstract_state(config, mesh) if kind == "train" else sampled_params(config, mesh, dtype)
    held = states.packed_shapes(config, abstract) if kind == "train" else abstract
    jitted, shapes = program.build(config, kind, mesh, held)
    lowered = jitted.lower(*shapes)
    lines = lowered.as_text().count("\n")
    rows, parts = config.optim.batch_size, sharding.num_batch_shards(mesh) * config.optim.accumulation
    state_bytes = sharding.byte_counts(shapes[0]).per_device
    begin = clocks()
    try:
        compiled = program.compile_lowered(lowered)
    except program.DoesNotFit as reason:
        needed = plan.peak_bytes if reason.needed is None else reason.needed + state_bytes
        raise _does_not_fit(rows, parts, needed, state_bytes, memory_limit()) from reason
    passed, cpu = clocks() - begin
    memory = compiled.memory_analysis()
    peak_bytes = program.peak_bytes(memory)
    if (limit := memory_limit()) is not None and peak_bytes > limit:
        raise _does_not_fit(rows, parts, peak_bytes, state_bytes, limit)
    device, computed = jax.local_devices()[0], stage.compute_dtype(config)
    has_allocator = device.memory_stats() is not None  # which would count the arrays of the peaks, too
    peaks = [] if has_allocator else [measure_peaks(mesh, computed)]
    # On GPUs, programs without graphs of CUDA: a trace names operations of the latter by their graph alone.
    traced = compiled if device.platform != "gpu" else program.compile_lowered(lowered, _NO_GRAPHS)
    args = []

    def run(executable: jax.stages.Compiled = compiled) -> None:
        args[:] = args or [_first_argument(config, kind, abstract, held), *map(_filled, shapes[1:])]
        out = executable(*args)
        if kind == "train":
            args[0] = out[0]  # the former state's memory is the new one's
        jax.block_until_ready(out)

    text = hlo.read(compiled.as_text())
    try:
        step = repeated(run, steps)
        by_kind = _seconds_by_kind(lambda: run(traced), traced.as_text(), _TRACED_STEPS if kind == "train" else 1)
    except jax.errors.JaxRuntimeError as reason:
        if "RESOURCE_EXHAUSTED" not in str(reason):
            raise
        raise _does_not_fit(rows, parts, peak_bytes, state_bytes, memory_limit()) from reason
    in_use = device.memory_stats()["peak_bytes_in_use"] if has_allocator else None
    args.clear()
    peaks.append(measure_peaks(mesh, computed))
    peak = Peaks(max(each.flops for each in peaks), max(each.bandwidth for each in peaks))
    cost = compiled.cost_analysis() or {}
    flops = mesh.size * (cost.get("flops", 0.0) + text.flops_repeated())
    moved, model_flops = mesh.size * cost.get("bytes accessed", 0.0), plan.model_flops_per_image * rows
    data, data_source = (None, None) if kind == "sample" else _data(config, mesh, steps)
    return Measured(
        stage=config.name,
        kind=kind,
        batch=rows,
        device=device.device_kind,
        num_devices=mesh.size,
        dtype=str(computed),
        parameters=plan.parameters,
        arrays=len(jax.tree.leaves(shapes[0])),
        unpacked_arrays=len(jax.tree.leaves(abstract)),
        stablehlo_lines=lines,
        compilation=Seconds(passed, passed, passed, cpu),
        step=step,
        images_per_s=rows / step.median,
        model_flops=model_flops,
        compiled_flops=flops,
        compiled_bytes=moved,
        peaks=peak,
        model_utilisation=model_flops / step.median / peak.flops,
        compiled_utilisation=flops / step.median / peak.flops,
        bandwidth_utilisation=moved / step.median / peak.bandwidth,
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        peak_bytes=peak_bytes,
        planned_peak_bytes=plan.peak_bytes,
        in_use_bytes=in_use,
        seconds_by_kind=by_kind,
        flops_by_kind={name: mesh.size * flops for name, flops in text.flops_by_kind().items()},
        data=data,
        data_source=data_source,
    )


def _does_not_fit(batch: int, parts: int, needed: int, state: int, limit: int | None) -> ValueError:
    """Return the error of a batch that needs too much memory; all but the state's part is in proportion to it."""
    share = 0.5 if limit is None else max(0, limit - state) / max(1, needed - state)
    largest = min(int(batch * share), batch - 1) // parts * parts
    gib = lambda size: f"{size / 2**30:.2f} GiB"
    of = "" if limit is None else f", of {gib(limit)}"
    fix = f"give {largest} or fewer, by this estimate" if largest else "no batch fits; share the state (run.fsdp)"
    return error("batch", "fit the memory of each device", Verbatim(f"{batch}, which needs {gib(needed)}{of}"), fix)


def _first_argument(config: StageConfig, kind: Kind, abstract: Any, held: Any) -> Any:
    """Return a new state as a training loop holds it, or random parameters for the sampler."""
    if kind == "train":
        return packing.pack_arrays(states.init_state(config, abstract), held)

    def init() -> Any:
        return jax.tree.map(lambda a, shape: a.astype(shape.dtype), stage.init(config, jax.random.key(0)), held)

    return jax.jit(init, out_shardings=states.shardings(held))()


def _filled(shapes: Any) -> Any:
    """Return arrays of these shapes and shardings: keys, True, or numbers between 0 and 1."""
    rng = np.random.default_rng(0)

    def fill(shape: jax.ShapeDtypeStruct) -> jax.Array:
        if jax.dtypes.issubdtype(shape.dtype, jax.dtypes.prng_key):
            made = stage.image_keys(0, len(shape))
        else:
            made = np.ones(shape.shape, bool) if shape.dtype == bool else rng.random(shape.shape, np.float32)
        return jax.device_put(made, shape.sharding)

    return jax.tree.map(fill, shapes)


def _seconds_by_kind(run: Callable[[], None], text: str, steps: int) -> dict[str, float]:
    """Return the seconds of each kind of operation in a step of the program with this text."""

    def some() -> None:
        for _ in range(steps):
            run()

    run()  # a program is loaded when it runs first

    module, read = re.match(r"HloModule ([\w.-]+)", text)[1], hlo.read(text)
    control = (each.name for each in read.operations if each.opcode in hlo.CONTROL)
    seconds, passed = profiling.seconds_by_operation(some, module, control)
    if not seconds:
        return {}
    kinds, found = read.kinds(), Counter()
    for name, value in seconds.items():
        found[kinds.get(name, "other")] += value / steps
    return {**dict(found.most_common()), BETWEEN: max(0.0, passed / steps - sum(found.values()))}


def _data(config: StageConfig, mesh: Mesh, times: int) -> tuple[Seconds, str | None]:
    """Return the seconds of making a batch and copying it, and the data set's path, None if there is none there."""
    path, rows = config.data.path, config.optim.batch_size
    keys = {"image_key": config.data.image_key, "caption_key": config.data.caption_key}
    shapes = batch_shapes(config, rows)
    if not Path(path).is_dir():
        made = {name: np.ones(shape.shape, shape.dtype) for name, shape in shapes.items()}
        return repeated(lambda: jax.block_until_ready(sharding.shard_batch(made, mesh)), times), None
    text = np.ones(shapes["text"].shape[1:], np.float32)
    loader = pipeline.make_loader(
        sources.open_source(path, config.data.split, **keys),
        lambda records: [text] * len(records),
        image_size=config.image_size,
        crop=config.data.crop,
        crop_size=config.crop_size,
        crop_grid=config.low_res_factor if config.crop_size else 1,
        batch_size=rows,
        text_length=config.text.length,
        seed=config.seed,
        flip=config.data.flip,
        num_threads=0,  # a batch is made when it is asked for
    )
    try:
        taken = lambda: {name: value for name, value in next(loader).items() if name in shapes}
        return repeated(lambda: jax.block_until_ready(sharding.shard_batch(taken(), mesh)), times), path
    finally:
        loader.close()
