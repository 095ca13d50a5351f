"""Accelerators that need not be at hand: what they can do, and their devices for the compiler."""

import dataclasses
import math
import os
import re
from typing import Any

import jax

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device, as its maker states it.

    Attributes:
      name: of the kind.
      memory: bytes of HBM that a program can have.
      flops: peak of bfloat16 matrix products, per second.
      bandwidth: of HBM, bytes per second.
      links: to other devices, all links together, bytes per second and direction.
      options: of the topology for the compiler.
      shapes: of slices, by number of devices.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    links: float
    options: tuple[tuple[str, Any], ...] = ()
    shapes: tuple[str, ...] = ()


_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
# Google's and NVIDIA's data sheets; memory is what the TPU compiler lets a program have.
CHIPS = {
    "v4": Chip(
        "TPU v4", int(30.75 * GIB), 275e12, 1228e9, 300e9, (("chip_config_name", "megacore"),), _CUBES
    ),
    "v5e": Chip("TPU v5e", int(15.75 * GIB), 197e12, 819e9, 200e9, (), _FLAT),
    "v5p": Chip("TPU v5p", int(95.7 * GIB), 459e12, 2765e9, 600e9, (), _CUBES),
    "v6e": Chip("TPU v6e", int(31.25 * GIB), 918e12, 1640e9, 448e9, (), _FLAT),
}
# What JAX calls them.
_TPU_KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}  # fmt: skip
_GPUS = {
    "H200": Chip("NVIDIA H200", int(139 * GIB), 989e12, 4800e9, 450e9),
    "H100": Chip("NVIDIA H100", int(78 * GIB), 989e12, 3350e9, 450e9),
    "A100": Chip("NVIDIA A100", int(78 * GIB), 312e12, 2039e9, 300e9),
}


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to plan for; `chip` is None for local ones that are not in the tables."""

    name: str
    devices: tuple[Any, ...]
    chip: Chip | None

    @property
    def memory(self) -> int | None:
        """Bytes on each device, None if unknown."""
        if self.chip is not None:
            return self.chip.memory
        return (self.devices[0].memory_stats() or {}).get("bytes_limit")


def num_devices(topology: str) -> int:
    """Of a TPU topology such as "v5e:16x16" or "v4:4x4x8"; raises a ValueError that says how to write one."""
    kind, _, shape = topology.partition(":")
    sides = re.fullmatch(r"\d+(x\d+){1,2}", shape) and [int(side) for side in shape.split("x")]
    if kind not in CHIPS or not sides or len(sides) != len(CHIPS[kind].shapes[0].split("x")):
        known = "; ".join(
            f"{name}:{chip.shapes[0]} to {name}:{chip.shapes[-1]}" for name, chip in CHIPS.items()
        )
        raise ValueError(
            f"--topology must be a TPU slice ({known}), or left out for local devices; got {topology!r}."
        )
    return math.prod(sides)


def of_kind(device_kind: str) -> Chip | None:
    """The chip that JAX calls so, None if it is not in the tables."""
    if device_kind in _TPU_KINDS:
        return CHIPS[_TPU_KINDS[device_kind]]
    return next((chip for name, chip in _GPUS.items() if name in device_kind), None)


def target(topology: str | None) -> Target:
    """A TPU slice by its name, from the compiler in libtpu; the local devices if that is None.

    Raises:
      ValueError: there is no such slice, or libtpu is not installed.
    """
    if topology is None:
        local = tuple(jax.devices())
        return Target(f"{len(local)} x {local[0].device_kind}", local, of_kind(local[0].device_kind))
    num = num_devices(topology)
    kind = topology.partition(":")[0]
    # This machine is no TPU VM: nobody answers at the metadata server, and nothing is locked.
    for name, value in {
        "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1", "TPU_ACCELERATOR_TYPE": "v5e-4",
        "TPU_WORKER_HOSTNAMES": "localhost", "TPU_MIN_LOG_LEVEL": "3", "TPU_STDERR_LOG_LEVEL": "3",
    }.items():  # fmt: skip
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise ValueError(
            f"libtpu must be installed to compile for --topology {topology}: pip install -e '.[tpu]', or add --quick."
        ) from None
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **dict(CHIPS[kind].options)
        )
    except Exception as error:
        first = str(error).splitlines()[0]
        raise ValueError(
            f"--topology must be one that libtpu knows; got {topology!r} ({first[:150]})."
        ) from error
    assert len(found.devices) == num, (topology, len(found.devices))
    return Target(topology, tuple(found.devices), CHIPS[kind])
