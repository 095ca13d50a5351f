"""Compile time, step time and memory of a stage's train step on the local devices, on random pictures.

  python benchmarks/training.py --preset sr256 --optim.batch-size 32 --run.fsdp 1
  python benchmarks/training.py --preset sr256 --optim.batch-size 32 --run.fsdp 1 --run.scan-blocks

plan.py says beforehand what this measures.
"""

import dataclasses
import statistics
import time

from imagen_jax.cli import parsing, program


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    preset: str
    """Name of a file in configs/ without .py, with its variant after a colon, or the path of such a file."""
    stage: str = ""
    """Name of the stage in the preset; the first."""
    steps: int = 10
    """Steps to time, after the first."""


def main(parsed) -> None:
    options, config = parsed
    import jax
    import numpy as np

    from imagen_jax import sharding
    from imagen_jax.config.validation import validate
    from imagen_jax.planning import targets
    from imagen_jax.planning.estimate import estimate
    from imagen_jax.training import packing
    from imagen_jax.training import state as states
    from imagen_jax.training.step import make_train_step
    from imagen_jax.training.utilisation import batch_shapes

    validate(config)
    if options.steps < 1:
        raise ValueError(f"--steps must be at least 1; got {options.steps}.")
    mesh = sharding.make_mesh(config.run.fsdp, height=config.run.height)
    plan = estimate(config, "train", mesh.size)
    rng = np.random.default_rng(0)
    # Values between 0 and 1 for pictures and text, True for every token.
    made = {
        name: rng.random(s.shape, np.float32) if s.dtype != bool else np.ones(s.shape, bool)
        for name, s in batch_shapes(config, config.optim.batch_size).items()
    }
    batch = sharding.shard_batch(made, mesh)
    abstract = states.abstract_state(config, mesh)
    packed = states.packed_shapes(config, abstract)
    state = packing.pack_arrays(states.init_state(config, abstract), packed)
    step = jax.jit(
        make_train_step(config, mesh), donate_argnums=0, out_shardings=(states.shardings(packed), None)
    )
    lowered = step.lower(state, batch)
    begin, cpu_begin = time.perf_counter(), time.process_time()
    compiled = lowered.compile()
    compilation, cpu_compilation = time.perf_counter() - begin, time.process_time() - cpu_begin
    seconds, cpu_begin = [], time.process_time()
    for _ in range(options.steps + 1):
        begin = time.perf_counter()
        state, metrics = compiled(state, batch)
        jax.block_until_ready((state, metrics))
        seconds.append(time.perf_counter() - begin)
    cpu = (time.process_time() - cpu_begin) / len(seconds)
    median = statistics.median(seconds[1:])
    spread = f"{min(seconds[1:]):.4g} to {max(seconds[1:]):.4g}"
    rate = plan.model_flops_per_image * config.optim.batch_size / median
    print(
        f"{config.name} ({options.preset}): {plan.parameters / 1e6:.1f}M parameters, batch "
        f"{config.optim.batch_size} on {mesh.size} x {jax.devices()[0].device_kind}, fsdp {config.run.fsdp}, "
        f"height {config.run.height}, remat {config.run.remat}, scan_blocks {config.run.scan_blocks}"
    )
    lines, arrays = lowered.as_text().count("\n"), len(jax.tree.leaves(state))
    whole = len(jax.tree.leaves(abstract))
    print(f"program       {lines:8} lines of StableHLO; the state has {arrays} arrays for {whole}")
    print(f"compiled in   {compilation:8.1f} s, {cpu_compilation:.1f} s of CPU time in all threads")
    print(f"step          {median:8.4g} s, median of {options.steps} ({spread}); {cpu:.4g} s of CPU time")
    print(f"throughput    {config.optim.batch_size / median:8.4g} images/s, {rate / 1e12:.3g} TFLOP/s")
    chip = targets.target(None).chip
    if chip is not None:
        print(
            f"utilisation   {100 * rate / (chip.flops * mesh.size):8.1f} % of {chip.flops / 1e12:.0f} TFLOP/s"
        )
    print(f"planned peak  {plan.peak_bytes / 2**30:8.2f} GiB a device")
    measured = jax.devices()[0].memory_stats()
    if measured:
        print(f"measured peak {measured['peak_bytes_in_use'] / 2**30:8.2f} GiB")


if __name__ == "__main__":
    program.run(main, lambda args: parsing.parse_stage(Options, __doc__, args))
