"""Memory of sampling a whole cascade, from shapes alone: all models loaded at once, or one at a time."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax import tracing
from imagen_jax.checks import require
from imagen_jax.config import StageConfig, TextConfig
from imagen_jax.planning.estimate import estimate
from imagen_jax.text import bert, clip, families, pretrained, t5
from imagen_jax.text.known import KNOWN, SHORT_NAMES, split_revision

_MODULES = {t5.T5Config: t5.T5Encoder, bert.BertConfig: bert.BertEncoder, clip.ClipConfig: clip.ClipEncoder}


@dataclasses.dataclass(frozen=True)
class Part:
    """Memory that the text encoder or a stage takes on the device that holds most of it, in bytes.

    Attributes:
      name: of the stage, or "text encoder".
      params_bytes: held as long as it is loaded.
      working_bytes: more, while it runs.
      ahead_bytes: see `Plan`.
    """

    name: str
    params_bytes: int
    working_bytes: int
    ahead_bytes: int = 0

    @property
    def peak_bytes(self) -> int:
        return self.params_bytes + self.working_bytes

    @property
    def most_bytes(self) -> int:
        return self.peak_bytes + self.ahead_bytes


def parts(configs: Sequence[StageConfig], devices: int, dtype: str = "float32") -> list[Part]:
    """Return the memory of the text encoder of a cascade and of its stages, base first.

    The encoder is on the first device, as in `imagen-jax sample`; stages are sharded as their `run` says.

    Args:
      configs: of the stages.
      devices: their number.
      dtype: of the stages' parameters.

    Raises:
      ValueError: the encoder's size is not known, or batch or mesh do not divide.
    """
    found = [text_encoder(configs[0].text)]
    for config in configs:
        plan = estimate(config, "sample", devices, dtype)
        found.append(Part(config.name, plan.params_bytes, plan.peak_bytes - plan.params_bytes, plan.ahead_bytes))
    return found


def together(found: Sequence[Part]) -> tuple[int, int]:
    """Return the peak of parts that are all loaded, of which one runs at a time, in bytes: estimated, and at most."""
    held = sum(part.params_bytes for part in found)
    return tuple(
        held + max(peak - part.params_bytes for part, peak in zip(found, peaks, strict=True))
        for peaks in _peaks(found)
    )


def one_at_a_time(found: Sequence[Part]) -> tuple[int, int]:
    """Return the peak of parts that are loaded, run and freed one after another, in bytes: estimated, and at most."""
    return tuple(map(max, _peaks(found)))


def _peaks(found: Sequence[Part]) -> tuple[list[int], list[int]]:
    return [part.peak_bytes for part in found], [part.most_bytes for part in found]


def text_encoder(config: TextConfig) -> Part:
    """Return the memory of a language model that encodes one caption.

    Raises:
      ValueError: its size is not known.
    """
    module = _module(config)
    ids = jax.ShapeDtypeStruct((1, config.length), jnp.int32)
    shapes = jax.eval_shape(lambda ids: module.init(jax.random.key(0), ids, ids), ids)
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))
    program = tracing.trace(module.apply, shapes, ids, ids)
    return Part("text encoder", size, tracing.peak_memory(program))


def _module(config: TextConfig) -> nn.Module:
    """Return the module of a language model in its types, by its name or from the config.json of its directory."""
    dtype = jnp.float32 if config.dtype == "float32" else jnp.bfloat16
    types: dict[str, Any] = {"dtype": dtype, "param_dtype": jnp.dtype(config.dtype)}
    name = split_revision(config.encoder)[0]
    if name in KNOWN:
        return _MODULES[type(KNOWN[name].config)](KNOWN[name].config, **types)
    rule = f"be a directory, or one of {', '.join(SHORT_NAMES)}, whose sizes are known"
    directory = pretrained.local(config.encoder)
    require(directory is not None, "--text.encoder", rule, config.encoder)
    family, sizes = families.read_config(directory)
    return family.module(sizes, **types)
