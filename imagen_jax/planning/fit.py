"""The nearest setting, or the smallest TPU slice or number of GPUs, in which a stage fits by the estimate."""

import dataclasses
import itertools
from collections.abc import Iterator

from imagen_jax import sharding
from imagen_jax.chips import CHIPS, Chip
from imagen_jax.config import StageConfig
from imagen_jax.planning.estimate import Kind, estimate, sampled_params
from imagen_jax.planning.targets import num_devices
from imagen_jax.training.state import abstract_state

_MARGIN = 0.9  # share of the memory that is planned for: the estimate may be a tenth too low


def advice(
    config: StageConfig, kind: Kind, devices: int, memory: int, chip: Chip | None, dtype: str = "float32"
) -> str:
    """Return one line of advice for a stage that does not fit `devices` devices of `memory` bytes each.

    Args:
      config, kind, devices, dtype: as for `estimate`.
      memory: of each device, in bytes.
      chip: the kind of device, None if it is not in the tables of `chips`.
    """
    if (found := nearest(config, kind, devices, memory, dtype)) is not None:
        return f"nearest that does    {found} (estimated)"
    name = next((name for name, each in CHIPS.items() if each is chip), None)
    for shape in chip.shapes if name else ():
        more = num_devices(f"{name}:{shape}")
        if more > devices and (found := nearest(config, kind, more, memory, dtype)) is not None:
            return f"no setting fits; the smallest that has one is {name}:{shape} with {found} (estimated)"
    return "no setting fits, however many of these chips: take a smaller preset or chips with more memory"


def nearest(config: StageConfig, kind: Kind, devices: int, memory: int, dtype: str = "float32") -> str | None:
    """Return options of imagen-jax plan with which the stage fits, or None."""
    for flags, changed in settings(config, kind, devices, memory, dtype):
        try:
            plan = estimate(changed, kind, devices, dtype)
        except ValueError:  # does not divide
            continue
        if plan.peak_bytes <= _MARGIN * memory:
            return flags
    return None


def settings(
    config: StageConfig, kind: Kind, devices: int, memory: int, dtype: str = "float32"
) -> Iterator[tuple[str, StageConfig]]:
    """Yield (options, configuration) of other ways to run the same step, in the order of their cost in speed."""

    def state_bytes(fsdp: int) -> int:
        mesh = sharding.abstract_mesh(devices, fsdp, height=config.run.height)
        held = abstract_state(config, mesh) if kind == "train" else sampled_params(config, mesh, dtype)
        return sharding.byte_counts(held).per_device

    fsdps = [
        ways
        for ways in (config.run.fsdp * 2**i for i in range(12))
        if devices % (ways * config.run.height) == 0
    ]
    fsdp = next((ways for ways in fsdps if state_bytes(ways) < 0.6 * memory), None)
    if fsdp is None:
        return
    run = dataclasses.replace(config.run, fsdp=fsdp)
    if kind == "sample":
        for batch in dict.fromkeys(max(devices, config.optim.batch_size // 2**i) for i in range(8)):
            optim = dataclasses.replace(config.optim, batch_size=batch, accumulation=1)
            yield f"--fsdp {fsdp} --batch {batch}", dataclasses.replace(config, run=run, optim=optim)
        return
    parts = [config.optim.accumulation * 2**i for i in range(8)]
    for accumulation, remat in itertools.product(parts, dict.fromkeys([config.run.remat, "full"])):
        if config.optim.batch_size % (devices * accumulation) == 0:
            run = dataclasses.replace(run, remat=remat)
            optim = dataclasses.replace(config.optim, accumulation=accumulation)
            flags = f"--fsdp {fsdp} --run.remat {remat} --optim.accumulation {accumulation}"
            yield flags, dataclasses.replace(config, run=run, optim=optim)
