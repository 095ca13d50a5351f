"""Names of modules in an adapter's files, and which kernel, or which part of one, each stands for."""

import dataclasses
from typing import Any

from flax.traverse_util import flatten_dict

from imagen_jax.config import IFUNetConfig, StageConfig
from imagen_jax.models import lora
from imagen_jax.stage_dir import unet_weights


@dataclasses.dataclass(frozen=True)
class Place:
    """What a module's name in the files stands for: a kernel, or one of equal `parts` of its columns.

    Attributes:
      path: of the kernel in the parameters.
      part, parts: which of how many.
      is_pointwise: whether a kernel [R, C] is a convolution of one pixel in the files.
    """

    path: lora.Path
    part: int = 0
    parts: int = 1
    is_pointwise: bool = False

    def columns(self, values: Any) -> Any:
        """Return the module's own columns of `values` [..., C]."""
        size = values.shape[-1] // self.parts
        return values[..., self.part * size : (self.part + 1) * size]


def places(config: StageConfig, shapes: Any) -> dict[str, Place]:
    """Return what the names of modules in the files of a stage stand for.

    The paths of our own modules are among them for every network, as earlier versions wrote them for IF's too.

    Args:
      config: of the stage.
      shapes: its parameters, arrays or shapes.
    """
    kernels = [path for path in flatten_dict(shapes) if path[-1] == "kernel"]
    found = {".".join(path[:-1]): Place(path) for path in kernels}
    if isinstance(config.network, IFUNetConfig):
        for row in unet_weights.table(shapes):
            if row.path[-1] == "kernel":
                names = [name.removesuffix(".weight") for name in row.names]
                rest = {"parts": len(names), "is_pointwise": row.path[-2] == "shortcut"}
                found |= {name: Place(row.path, part, **rest) for part, name in enumerate(names)}
    return found
