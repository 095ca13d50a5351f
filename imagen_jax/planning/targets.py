"""The devices that a stage is planned for: a TPU slice or GPUs that need not be attached, or the local devices."""

import dataclasses
import math
import os
import re
from typing import Any

import jax

from imagen_jax import checks, chips
from imagen_jax.checks import require


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to plan for; `chip` is None for local devices that are not in the tables of `chips`."""

    name: str
    devices: tuple[Any, ...]
    chip: chips.Chip | None

    @property
    def memory(self) -> int | None:
        """Memory of each device in bytes, None if unknown."""
        if self.chip is not None:
            return self.chip.memory
        return (self.devices[0].memory_stats() or {}).get("bytes_limit")


def num_devices(topology: str) -> int:
    """Return the number of devices of a topology such as "v5e:16x16" or "v4:4x4x8", or of GPUs such as "h100:8".

    Raises:
      ValueError: `topology` names neither a TPU slice nor GPUs of one node.
    """
    kind, _, shape = topology.partition(":")
    chip = chips.CHIPS.get(kind)
    sides = re.fullmatch(r"\d+(x\d+){0,2}", shape) and [int(side) for side in shape.split("x")]
    is_known = sides and chip and len(sides) == len(chip.shapes[0].split("x"))
    if is_known:  # libtpu knows which slices within the largest one there are
        largest = sorted(int(side) for side in chip.shapes[-1].split("x"))
        is_known = all(0 < side <= most for side, most in zip(sorted(sides), largest, strict=True))
        is_known = is_known and all(side in (1, 2) or side % 4 == 0 for side in sides)
        is_known = is_known and (not chip.is_gpu or shape in chip.shapes)
    spans = lambda gpus: "; ".join(
        f"{name}:{chip.shapes[0]} to {name}:{chip.shapes[-1]}"
        for name, chip in chips.CHIPS.items()
        if chip.is_gpu == gpus
    )
    rule = f"be a TPU slice ({spans(False)}), GPUs of one node ({spans(True)}), or left out for local devices"
    require(bool(is_known), "--topology", rule, topology)
    return math.prod(sides)


def target(topology: str | None) -> Target:
    """Return the devices of a TPU slice, described by the compiler in libtpu; for None, the local devices.

    Raises:
      ValueError: there is no such slice, or libtpu is not installed.
    """
    if topology is None:
        local = tuple(jax.devices())
        return Target(f"{len(local)} x {local[0].device_kind}", local, chips.of_kind(local[0].device_kind))
    num = num_devices(topology)
    kind = topology.partition(":")[0]
    # Outside a TPU VM the metadata server is unreachable, and no TPU needs to be locked.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5e-4",
        "TPU_WORKER_HOSTNAMES": "localhost", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ValueError(
            f"--topology must have libtpu to compile for {topology}; it is not installed: run `pip install -e "
            "'.[tpu]'`, or add --quick."
        ) from None
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **dict(chips.CHIPS[kind].options)
        )
    except Exception as error:
        got = checks.Verbatim(f"{topology!r} ({str(error).splitlines()[0][:150]})")
        raise checks.error("--topology", "be one that libtpu knows", got) from error
    assert len(found.devices) == num, (topology, len(found.devices))
    return Target(topology, tuple(found.devices), chips.CHIPS[kind])
