"""Families of text encoders, and the conversion of their checkpoints to Linen modules."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from imagen_jax import checks
from imagen_jax.registry import Registry
from imagen_jax.text import bert, clip, layers, model_files, t5
from imagen_jax.text.model_files import OPEN_CLIP_CONFIG, read_json


def tokens(config: Any) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Return the shapes of token ids and attention mask."""
    ids = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    return ids, ids


@dataclasses.dataclass(frozen=True)
class Family:
    """The conversion of checkpoints of one config["model_type"] to a Linen module.

    Attributes:
      parse: config.json as a dict -> the module's hashable config, which has `width`, `max_length`
        (None where positions have no end) and `vocab_size`.
      module: (config, dtype=, param_dtype=) -> a Linen module;
        module(input_ids [B, L], attention_mask [B, L]) -> [B, L, D], or [B, 1, D] if pooled.
      tensor_table: config -> rows (name in the checkpoint, path of the parameter, transposed?). Several rows of
        one name are stacked in that tensor along its first axis, in this order.
      canonical_name: a name found in a checkpoint -> the name in the table; None: not needed.
      inputs: config -> shapes of what the module is called with; tokens unless given.
      tied_names: config -> {name in the table: other names of the same tensor, best first}, of which one is taken
        where the tensor is not there under its own.
    """

    parse: Callable[[Mapping[str, Any]], Any]
    module: Callable[..., nn.Module]
    tensor_table: Callable[[Any], Iterable[layers.Row]]
    canonical_name: Callable[[str], str | None]
    inputs: Callable[[Any], tuple[jax.ShapeDtypeStruct, ...]] = tokens
    tied_names: Callable[[Any], Mapping[str, tuple[str, ...]]] = lambda config: {}


# By the model_type of config.json.
FAMILIES = Registry("model type")
FAMILIES.register("bert")(
    Family(
        bert.BertConfig.from_hf,
        bert.BertEncoder,
        bert.tensor_table,
        bert.canonical_name,
        tied_names=bert.tied_names,
    )
)
for _name in ("t5", "mt5", "umt5"):
    FAMILIES.register(_name)(
        Family(
            t5.T5Config.from_hf, t5.T5Encoder, t5.tensor_table, t5.canonical_name, tied_names=t5.tied_names
        )
    )
for _name in ("clip", "clip_text_model"):
    FAMILIES.register(_name)(
        Family(clip.ClipConfig.from_hf, clip.ClipEncoder, clip.tensor_table, clip.canonical_name)
    )
# Has files of its own in place of config.json and model.safetensors.
_OPEN_CLIP = Family(clip.open_clip_config, clip.ClipEncoder, clip.open_clip_table, clip.open_clip_name)


def read_config(directory: Path) -> tuple[Family, Any]:
    """Return the family of a model directory and the parsed config.

    Raises:
      ValueError: no config.json, or a model_type that is not in FAMILIES.
    """
    path = directory / "config.json"
    if model_files.is_open_clip(directory):
        return _OPEN_CLIP, parse_config(_OPEN_CLIP, directory, read_json(directory / OPEN_CLIP_CONFIG))
    if not path.is_file():
        raise ValueError(
            f"a text encoder's directory must hold config.json; got {directory}, which has none: "
            "pass a directory in Hugging Face layout."
        )
    config = read_json(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise ValueError(
            f"{path}: model_type must be one of {sorted(FAMILIES)}; got "
            f"{model_type!r:.80}: choose a text encoder of such a type."
        )
    family = FAMILIES[model_type]
    return family, parse_config(family, directory, config)


def parse_config(family: Family, directory: Path, config: Mapping[str, Any]) -> Any:
    """Return the parsed config of a model directory; an error names the directory."""
    try:
        return family.parse(config)
    except ValueError as error:
        raise checks.within(directory, error) from error


def make_module(directory: Path, dtype: Any, param_dtype: Any = None, output: str = "last") -> nn.Module:
    """Return the Linen module of a model directory, without its parameters.

    Args:
      directory: in Hugging Face layout.
      dtype: what it computes in.
      param_dtype: what its parameters are stored in; int8 stores matrices as int8 with a scale for each
        output, the rest as float32. None: as `dtype`.
      output: "last"; for CLIP also "penultimate" and "pooled".

    Raises:
      ValueError: no or an unsupported config.json, or an output that the model does not have.
    """
    family, config = read_config(directory)
    if hasattr(config, "output"):
        config = dataclasses.replace(config, output=output)
    elif output != "last":
        raise ValueError(
            f"output must be 'last' for the model in {directory}; got {output!r}: only CLIP has other outputs."
        )
    return family.module(config, dtype=dtype, param_dtype=param_dtype or dtype)
