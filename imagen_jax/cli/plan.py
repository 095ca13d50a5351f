"""Estimate whether a stage fits a TPU slice, a node of GPUs or the local devices, and how fast it is.

  imagen-jax plan --preset base64:2b --topology v5e:16x16 --batch 2048 --fsdp 16
  imagen-jax plan --preset sr256 --topology v5e:2x2 --kind sample --batch 4 --quick
  imagen-jax plan --preset base64:2b --topology h100:8 --batch 512 --fsdp 8
  imagen-jax plan --preset deepfloyd:xl --topology v5e:2x2 --kind sample --batch 4 --dtype bfloat16
  imagen-jax plan --preset deepfloyd:xl --topology v5e:2x2 --kind cascade --batch 4 --dtype bfloat16 --text.dtype int8

Compiles the real train step, or sampler, for the chips; no TPU has to be at hand, only libtpu
(pip install -e '.[tpu]'). --quick estimates from shapes alone, and so do --kind cascade, for the text encoder and all
stages of the preset, and GPUs that are not at hand, for which there is no compiler. Exit status 1: it does not fit.
"""

import dataclasses
from typing import Literal

from imagen_jax.checks import Verbatim, require, whole
from imagen_jax.cli import parsing, stages
from imagen_jax.config import StageConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    preset: str
    """Name of a file in configs/ without .py, with its variant after a colon, or the path of such a file; or the
    directory of a cascade, also of DeepFloyd IF in diffusers' layout."""
    stage: str = ""
    """Name of the stage in the preset; empty: the first."""
    topology: str | None = None
    """TPU slice such as v5e:16x16 or v4:4x4x8, or GPUs of one node such as h100:8 (a100, h100, h200, b200); None: the
    local devices."""
    kind: Literal["train", "sample", "cascade"] = "train"
    """What to run there: the stage's train step, its sampler, or the samplers of all stages and the text encoder."""
    batch: int | None = None
    """Images in a batch, over all devices; None: optim.batch_size."""
    fsdp: int | None = None
    """Devices that share each copy of the state; None: run.fsdp."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the parameters that are sampled with; training has float32."""
    quick: bool = False
    """Estimate only, without compiling."""


def main(parsed: tuple[Options, StageConfig]) -> int:
    options, config = parsed
    if options.topology is not None:
        import jax

        jax.config.update("jax_platforms", "cpu")  # a TPU or GPU at hand has no part in it
    from imagen_jax import chips
    from imagen_jax.planning import fit, program, targets
    from imagen_jax.planning.estimate import UTILISATION, estimate, planned

    rule, fix = "be float32 for a train step", "add --kind sample"
    require(options.kind != "train" or options.dtype == "float32", "--dtype", rule, options.dtype, fix)
    for name in ("batch", "fsdp"):
        if getattr(options, name) is not None:
            whole(f"--{name}", getattr(options, name), 1, 2**20)
    compute_dtype = None if options.topology is None else "bfloat16"
    config = planned(config, options.kind, batch=options.batch, fsdp=options.fsdp, compute_dtype=compute_dtype)
    if options.topology is not None:
        devices = targets.num_devices(options.topology)
        chip = chips.CHIPS[options.topology.partition(":")[0]]
        options = dataclasses.replace(options, quick=options.quick or chip.is_gpu)
    if (options.quick or options.kind == "cascade") and options.topology is not None:
        memory, where = chip.memory, options.topology
    else:
        target = targets.target(options.topology)
        devices, memory, chip, where = len(target.devices), target.memory, target.chip, target.name

    rule = f"be given, since the preset's {config.run.fsdp} does not divide the number of devices {devices}"
    is_right = options.fsdp is not None or devices % config.run.fsdp == 0
    require(is_right, "--fsdp", rule, Verbatim("no value"), "add --fsdp 1, or another divisor")
    if options.kind == "cascade":
        return cascade_fits(options, config, devices, memory, where)
    plan = estimate(config, options.kind, devices, options.dtype)
    gib = lambda size: f"{size / 2**30:8.2f} GiB"
    print(
        f"{config.name} ({options.preset}), {options.kind}, batch {config.optim.batch_size} on {devices} devices "
        f"({where}): fsdp {config.run.fsdp}, height {config.run.height}, accumulation {config.optim.accumulation}, "
        f"remat {config.run.remat}, scan_blocks {config.run.scan_blocks}, {config.compute_dtype}"
    )
    print(f"parameters           {plan.parameters / 1e6:8.1f} M, {options.dtype}")
    print(f"replicated           {100 * plan.replicated:8.2f} % of the state's bytes")
    print("on each device, from shapes alone:")
    print(f"  parameters         {gib(plan.params_bytes)}")
    if options.kind == "train":
        print(f"  averaged           {gib(plan.ema_bytes)}\n  optimiser          {gib(plan.optimizer_bytes)}")
    print(f"  batch              {gib(plan.input_bytes)}\n  temporaries        {gib(plan.temporary_bytes)}")
    print(f"  peak               {gib(plan.peak_bytes)}{f' of {memory / 2**30:.2f}' if memory else ''}")
    peak, fits = plan.peak_bytes, None if memory is None else plan.peak_bytes <= memory
    most = plan.peak_bytes + plan.ahead_bytes if options.quick else 0
    if most > peak:
        print(f"  at most            {gib(most)}, if the compiler gathers all parameters before the steps")
    exchanged = plan.collective_bytes
    if not options.quick:
        try:
            compiled = program.compile_for(config, options.kind, target, options.dtype)
        except program.DoesNotFit as error:
            fits = False
            print(f"compiled: {error}")
            peak = None if error.needed is None else error.needed + plan.peak_bytes - plan.temporary_bytes
        else:
            peak = compiled.peak_bytes
            fits = None if memory is None else peak <= memory
            print(f"compiled in {compiled.seconds:.0f} s, {compiled.code_bytes / 1e6:.0f} MB of code:")
            print(f"  arguments          {gib(compiled.argument_bytes)}")
            print(f"  temporaries        {gib(compiled.temporary_bytes)}")
            print(f"  peak               {gib(peak)}{f' of {memory / 2**30:.2f}' if memory else ''}")
            print(f"  estimate / compiled peak {plan.peak_bytes / peak:.2f}")
            for name, (count, size) in compiled.collectives.items():
                print(f"  {name:18} {gib(size)} in {count}")
            if options.kind == "train":
                exchanged = compiled.link_bytes
    print(
        f"work                 {plan.model_flops_per_image / 1e12:8.2f} TFLOP an image, "
        f"{plan.flops / 1e12:.1f} TFLOP a device and {'step' if options.kind == 'train' else 'batch'}, "
        f"{plan.intensity:.0f} FLOP a byte"
    )
    if chip is not None:
        plan = dataclasses.replace(plan, collective_bytes=exchanged)
        parts = plan.seconds(chip)
        step = max(parts.values())
        print(
            f"time                 {step:8.2f} s, {config.optim.batch_size / step:.3g} images/s (compute "
            f"{parts['compute']:.2f}, memory {parts['memory']:.2f}, links {parts['links']:.2f} s)\n"
            f"  assuming {chip.flops / 1e12:.0f} TFLOP/s used at {100 * UTILISATION:.0f} %, "
            f"{chip.bandwidth / 1e9:.0f} GB/s of memory, {chip.links / 1e9:.0f} GB/s of links, all at the same time"
        )
    if fits is None:
        print("fits                 unknown: the device does not say how much memory it has")
        return 0
    if fits and most > memory:
        print("fits                 perhaps; compile it without --quick")
        return 0
    if fits:
        print(f"fits                 yes, with {(memory - peak) / 2**30:.2f} GiB to spare")
        return 0
    print("fits                 no")
    print(fit.advice(config, options.kind, devices, memory, chip, options.dtype))
    return 1


def cascade_fits(options: Options, config: StageConfig, devices: int, memory: int | None, where: str) -> int:
    """Print the memory of each part of the cascade and of all; return the exit status.

    Args:
      options: of the command.
      config: of the stage that is named, whose `text`, `run`, `compute_dtype` and batch size the others get.
      devices: their number.
      memory: of each, in bytes; None if unknown.
      where: the devices in words.
    """
    from imagen_jax.planning import cascade

    same = {name: getattr(config, name) for name in ("text", "run", "compute_dtype")}
    configs, batch = [], config.optim.batch_size
    for stage in stages.of_preset(options.preset):
        optim = dataclasses.replace(stage.optim, batch_size=batch)
        configs.append(config if stage.name == config.name else dataclasses.replace(stage, optim=optim, **same))
    found = cascade.parts(configs, devices, options.dtype)
    print(
        f"cascade {options.preset}, batch {batch} on {devices} devices ({where}): fsdp {config.run.fsdp}, parameters "
        f"{options.dtype}, computed in {config.compute_dtype}; text encoder {config.text.encoder} {config.text.dtype}"
    )
    print("on the device that holds most, from shapes alone:")
    print(f"  {'':14}{'parameters':>14}{'at work':>14}{'peak':>14}{'at most':>14}")
    gib = lambda size: f"{size / 2**30:10.2f} GiB"
    for part in found:
        columns = (part.params_bytes, part.working_bytes, part.peak_bytes, part.most_bytes)
        print(f"  {part.name:14}{''.join(map(gib, columns))}")
    of = f" of {memory / 2**30:.2f}" if memory else ""
    together, alone = cascade.together(found), cascade.one_at_a_time(found)
    for name, sizes in (("all loaded", together), ("one at a time", alone)):
        print(f"{name:44}{''.join(map(gib, sizes))}{of}")
    if any(part.ahead_bytes for part in found):
        print("at most: if the compiler gathers all parameters before the steps; --kind sample compiles a stage")
    sizes = (dataclasses.replace(config.text, dtype=dtype) for dtype in ("float32", "bfloat16", "int8"))
    sizes = [f"{text.dtype} {cascade.text_encoder(text).peak_bytes / 2**30:.2f} GiB" for text in sizes]
    print(f"the text encoder by its type: {', '.join(sizes)}")
    if memory is None:
        print("fits                 unknown: the device does not say how much memory it has")
        return 0
    in_turn = "one at a time: imagen-jax sample --one-at-a-time"
    for (_, most), words in ((together, "yes"), (alone, in_turn)):
        if most <= memory:
            print(f"fits                 {words}")
            return 0
    for (estimated, _), words in ((together, "all loaded"), (alone, in_turn)):
        if estimated <= memory:
            print(f"fits                 perhaps, {words}; compile each stage with --kind sample")
            return 0
    large = ", ".join(part.name for part in found if part.peak_bytes > memory)
    print(f"fits                 no: too large even alone: {large}")
    return 1


def parse(args: list[str]) -> tuple[Options, StageConfig]:
    return parsing.parse_stage(Options, __doc__, args)
