"""Peak rates and memory of accelerators, from their makers' data sheets."""

import dataclasses
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Properties of one device, from its data sheet.

    Attributes:
      name: name of the kind of device.
      memory: HBM available to a program, in bytes.
      flops: peak rate of bfloat16 matrix products, in floating-point operations per second.
      bandwidth: HBM bandwidth, in bytes per second.
      links: bandwidth of all links to other devices together, in bytes per second and direction.
      options: options of the TPU compiler's topology description.
      shapes: of TPU slices, or numbers of GPUs in a node, the smallest first.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    links: float
    options: tuple[tuple[str, Any], ...] = ()
    shapes: tuple[str, ...] = ()

    @property
    def is_gpu(self) -> bool:
        """Whether it is one of a node of GPUs, not of a TPU slice."""
        return self.shapes == _NODES


_NODES = ("1", "2", "4", "8")
_FLAT = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8", "8x8x16", "8x16x16")
# From Google's and NVIDIA's data sheets; `memory` is what the TPU compiler lets a program use, and of GPUs what is left
# beside the driver's. Links of GPUs are NVLink's in a node of 8.
CHIPS = {
    "v4": Chip(
        "TPU v4", int(30.75 * GIB), 275e12, 1228e9, 300e9, (("chip_config_name", "megacore"),), _CUBES
    ),
    "v5e": Chip("TPU v5e", int(15.75 * GIB), 197e12, 819e9, 200e9, (), _FLAT),
    "v5p": Chip("TPU v5p", int(95.7 * GIB), 459e12, 2765e9, 600e9, (), _CUBES),
    "v6e": Chip("TPU v6e", int(31.25 * GIB), 918e12, 1640e9, 448e9, (), _FLAT),
    "a100": Chip("NVIDIA A100", int(78 * GIB), 312e12, 2039e9, 300e9, (), _NODES),
    "h100": Chip("NVIDIA H100", int(78 * GIB), 989e12, 3350e9, 450e9, (), _NODES),
    "h200": Chip("NVIDIA H200", int(139 * GIB), 989e12, 4800e9, 450e9, (), _NODES),
    "b200": Chip("NVIDIA B200", int(166 * GIB), 2250e12, 7700e9, 900e9, (), _NODES),
}
# jax.Device.device_kind -> key of CHIPS.
_TPU_KINDS = {
    "TPU v4": "v4", "TPU v5 lite": "v5e", "TPU v5e": "v5e", "TPU v5": "v5p", "TPU v5p": "v5p", "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
}  # fmt: skip


def of_kind(device_kind: str) -> Chip | None:
    """Return the chip of a `jax.Device.device_kind`, or None if it is not in the tables."""
    if device_kind in _TPU_KINDS:
        return CHIPS[_TPU_KINDS[device_kind]]
    return next((chip for name, chip in CHIPS.items() if chip.is_gpu and name.upper() in device_kind), None)
