"""Measure a stage's train step, or its sampler, on the local devices, with random pictures and text.

  imagen-jax benchmark --preset shapes --kind train --steps 20 --output train.json
  imagen-jax benchmark --preset sr256 --kind sample --batch 4 --sampling.steps 8

Shows the time of compilation, the median step, images a second, FLOPs by formula and of the compiled program, both as
shares of the matrix products that this machine reaches in the same run, bytes as a share of the copies that it reaches,
peak memory, and the time of each kind of operation. The latter is read off a trace of JAX's profiler, each operation of
which is one of the compiled program: its kind follows from the instruction and from the name of the layer that it comes
from. A fused operation counts as its convolution or product, or else as what most of its parts are; time during which
several operations run is divided equally among them. FLOPs of loops count each turn for products, and one for the rest.
FLOPs by formula are those of training all parameters to denoise, also where adapters are trained or a teacher is used.
"""

import dataclasses
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from imagen_jax import checks
from imagen_jax.cli import parsing
from imagen_jax.cli.stages import of_preset
from imagen_jax.config import StageConfig

if TYPE_CHECKING:
    from imagen_jax.planning.measure import Measured

MAX_STEPS = 100_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    preset: str = ""
    """Name of a file in configs/ without .py, with its variant after a colon, or the path of such a file; or the
    directory of a cascade."""
    workdir: str = ""
    """Instead of --preset: directory of a trained cascade, or what --pretrained of imagen-jax sample takes."""
    stage: str = ""
    """Name of the stage; empty: the first."""
    kind: Literal["train", "sample"] = "train"
    """What to run: a train step, or all steps of the sampler for a batch."""
    batch: int | None = None
    """Images in a batch, over all devices; None: optim.batch_size."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the parameters that are sampled with; training has float32."""
    steps: int = 10
    """Runs that are timed, after one that is not."""
    output: Path | None = None
    """A file for the results as JSON; one that is there is replaced."""


def main(parsed: tuple[Options, StageConfig]) -> None:
    options, config = parsed
    from imagen_jax.storage import files, locations

    checks.whole("--steps", options.steps, 1, MAX_STEPS)
    rule, fix = "be float32 for a train step", "add --kind sample"
    checks.require(options.kind != "train" or options.dtype == "float32", "--dtype", rule, options.dtype, fix)
    if options.batch is not None:
        checks.whole("--batch", options.batch, 1, 2**20)
    from imagen_jax.planning.estimate import planned

    config = planned(config, options.kind, batch=options.batch)
    if options.output is not None:
        locations.local(options.output, "--output")
        files.check_directory(options.output.parent, "--output", names=[options.output.name])
    import jax

    from imagen_jax.planning.measure import measure

    jax.config.update("jax_enable_compilation_cache", False)  # the time of compilation is measured
    measured = measure(config, options.kind, options.steps, options.dtype)
    print(table(measured, config.sampling.steps + config.sampling.method("sampler").has_final))
    if options.output is not None:
        versions = {name: version(name) for name in ("imagen_jax", "jax", "jaxlib")}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(options.output, {"versions": versions, **dataclasses.asdict(measured)}, indent=1)


def table(measured: "Measured", sampling_steps: int) -> str:
    """Return the text that is shown of a measurement.

    Args:
      measured: the measurement.
      sampling_steps: of the sampler, with the final estimate.
    """
    step, peaks, gib = measured.step, measured.peaks, lambda size: f"{size / 2**30:.3f}"
    of_peak = f"% of {peaks.flops / 1e12:.3g} TFLOP/s, this machine's products in {measured.dtype}"
    evaluated = "" if measured.kind == "train" else f"; {1000 * step.median / sampling_steps:.4g} ms a sampling step"
    in_use = "" if measured.in_use_bytes is None else f"; allocated {gib(measured.in_use_bytes)}"
    rows = [
        f"{measured.stage}, {measured.kind}, batch {measured.batch} on {measured.num_devices} x {measured.device}, "
        f"{measured.dtype}: {measured.parameters / 1e6:.1f}M parameters, {measured.arrays} arrays for "
        f"{measured.unpacked_arrays}",
        f"compilation {measured.compilation.median:8.1f} s, {measured.compilation.cpu:.1f} CPU s, of "
        f"{measured.stablehlo_lines} lines of StableHLO",
        f"step        {step.median:8.4g} s ({step.least:.4g} to {step.most:.4g}), {step.cpu:.4g} CPU s{evaluated}",
        f"throughput  {measured.images_per_s:8.4g} images/s",
        f"by formula  {measured.model_flops / 1e9:8.4g} GFLOP, {100 * measured.model_utilisation:.1f} {of_peak}",
        f"compiled    {measured.compiled_flops / 1e9:8.4g} GFLOP, {100 * measured.compiled_utilisation:.1f} {of_peak}",
        f"traffic     {measured.compiled_bytes / 2**30:8.4g} GiB, {100 * measured.bandwidth_utilisation:.1f} % of "
        f"{peaks.bandwidth / 1e9:.4g} GB/s, this machine's copies",
        f"peak memory {gib(measured.peak_bytes):>8} GiB a device ({gib(measured.argument_bytes)} arguments, "
        f"{gib(measured.temporary_bytes)} temporaries); planned {gib(measured.planned_peak_bytes)}{in_use}",
    ]
    rows.append(_kinds(measured))
    if (data := measured.data) is not None:
        what = f"a batch of {measured.data_source}, read, decoded and copied"
        what = "a batch copied; no data set is there" if measured.data_source is None else what
        share = 100 * data.median / step.median
        rows.append(f"data        {1000 * data.median:8.4g} ms beside the step, {share:.1f} % of its time ({what})")
    return "\n".join(rows)


def _kinds(measured: "Measured") -> str:
    total = sum(measured.seconds_by_kind.values())
    if not total:
        return "time by kind unknown: the profiler names no operations on these devices"
    lines = ["", "| kind | ms a step | share % | GFLOP | GFLOP/s |", "|---|---:|---:|---:|---:|"]
    for kind, seconds in measured.seconds_by_kind.items():
        flops = measured.flops_by_kind.get(kind, 0)
        work = f"{flops / 1e9:.4g} | {flops / 1e9 / seconds:.4g}" if flops and seconds else " | "
        lines.append(f"| {kind} | {1000 * seconds:.4g} | {100 * seconds / total:.1f} | {work} |")
    return "\n".join([*lines, ""])


def parse(args: list[str]) -> tuple[Options, StageConfig]:
    return parsing.parse_stage(Options, __doc__, args, _stages)


def _stages(values: dict[str, str]) -> list[StageConfig]:
    """Return the stages of --preset or of --workdir."""
    preset, workdir = values.get("preset"), values.get("workdir")
    if workdir is None:
        fix = "name a preset, or a cascade with --workdir"
        checks.require(preset is not None, "--preset", "be given", checks.Verbatim("no value"), fix)
        return list(of_preset(preset))
    checks.require(preset is None, "--preset", "be left out with --workdir", preset, "give one of the two")
    from imagen_jax.stage_dir import loading, pretrained

    pretrained.check(workdir, "--workdir")
    return [each.config for each in loading.read_cascade(workdir)]
