"""What a stage is given when it is sampled, and whether it fits, before anything is compiled."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from imagen_jax.config import SamplingConfig, StageConfig
from imagen_jax.structs import TextCond


@flax.struct.dataclass
class Inputs:
    """What a stage may be given besides text and keys; see `stage.sample_stage`."""

    low_res: jax.Array | None = None
    negative: TextCond | None = None
    weak: Any = None  # a Stage
    image: jax.Array | None = None
    mask: jax.Array | None = None
    cond_image: jax.Array | None = None
    z_1: jax.Array | None = None


def check_inputs(
    config: StageConfig,
    texts: tuple[TextCond, ...],
    keys: jax.Array,
    inputs: Inputs,
    sampling: SamplingConfig,
    weights: tuple[float, ...] | None,
    size: tuple[int, int],
) -> None:
    """Raises a ValueError of one line for whatever does not fit the stage; the arguments are those of `run_stage`."""
    _require(
        keys.ndim == 1 or (keys.ndim == 2 and keys.dtype == jnp.uint32),
        f"keys must be [B], one for each image, as from image_keys; got shape {keys.shape}.",
    )
    batch = len(keys)
    for text in (*texts, *([inputs.negative] if inputs.negative is not None else [])):
        _require(
            text.embeddings.ndim == 3
            and text.mask.shape == text.embeddings.shape[:2]
            and text.mask.dtype == bool,
            "text must have embeddings [B, L, D] and a bool mask [B, L]; got "
            f"{text.embeddings.shape} and {text.mask.dtype} {text.mask.shape}.",
        )
    for text in texts:
        width = text.embeddings.shape[-1]
        _require(
            width == config.text.width,
            f"text must have the width {config.text.width} of {config.text.encoder}, which stage {config.name} was "
            f"trained with; got {width}.",
        )
        _require(
            len(text.embeddings) == batch,
            f"text and keys must have one row per image; got {len(text.embeddings)} and {batch}.",
        )
    _require(
        (weights is None and len(texts) == 1) or (weights is not None and len(weights) == len(texts)),
        "weights must be given for several texts, one for each; got "
        f"{'none' if weights is None else len(weights)} for {len(texts)}.",
    )
    shapes = {text.embeddings.shape[1:] for text in texts}
    if inputs.negative is not None:
        _require(
            inputs.weak is None,
            "negative must be left out with a weak stage, which takes the null's place; got both.",
        )
        _require(
            len(inputs.negative.mask) in (1, batch),
            f"negative must have 1 or {batch} rows; got {len(inputs.negative.mask)}.",
        )
        shapes.add(inputs.negative.embeddings.shape[1:])
    _require(
        len(shapes) == 1,
        f"texts and negative must have equal length and width: encode all at the same length; got {sorted(shapes)}.",
    )
    _require(
        sampling.is_guided or (inputs.negative is None and inputs.weak is None),
        "guidance_scale must not be 1 (off) with a negative prompt or a weak stage; got 1.",
    )
    if inputs.weak is not None:
        _require(len(texts) == 1, f"text must be one batch with a weak stage; got {len(texts)}.")
        facts = lambda c: (c.image_channels, c.low_res_size, c.cond_image_channels, c.text.width)
        _require(
            facts(inputs.weak.config) == facts(config),
            f"weak must take the inputs of stage {config.name}; {inputs.weak.config.name} takes others.",
        )
    _check_images(config, batch, inputs, sampling, size)


def _check_images(
    config: StageConfig, batch: int, inputs: Inputs, sampling: SamplingConfig, size: tuple[int, int]
) -> None:
    stride = config.network.stride
    _require(
        len(size) == 2 and all(side > 0 and side % stride == 0 for side in size),
        f"size must be (H, W) in multiples of {stride}, the total stride of stage {config.name}; got {size}.",
    )
    _require(
        config.is_super_resolution == (inputs.low_res is not None),
        f"low_res must be {'given to the super-resolution' if config.is_super_resolution else 'None for the base'} "
        f"stage {config.name}; got {'None' if inputs.low_res is None else f'shape {inputs.low_res.shape}'}.",
    )
    whole = (batch, *size, config.image_channels)
    expected = {"image": whole, "z_1": whole, "cond_image": (*whole[:3], config.cond_image_channels)}
    if config.is_super_resolution:
        height, width = (side * config.low_res_size / config.image_size for side in size)
        _require(
            height % 1 == width % 1 == 0,
            f"size must be a multiple of the stage's factor {config.image_size}/{config.low_res_size}; got {size}.",
        )
        expected["low_res"] = (batch, int(height), int(width), config.image_channels)
    for name, shape in expected.items():
        value = getattr(inputs, name)
        _require(
            value is None or value.shape == shape,
            f"{name} must be {list(shape)} for stage {config.name}; got {None if value is None else value.shape}: "
            "resize it (imagen_jax.resize.area, bilinear) or give the size that you want.",
        )
    require_float(image=inputs.image, low_res=inputs.low_res, cond_image=inputs.cond_image)
    _require(
        (inputs.cond_image is not None) == bool(config.cond_image_channels),
        f"cond_image must be {'given' if config.cond_image_channels else 'left out'}: stage {config.name} has "
        f"cond_image_channels {config.cond_image_channels}.",
    )
    if inputs.mask is not None:
        _require(inputs.image is not None, "mask must come with the image to paint in; got image None.")
        shape = inputs.mask.shape
        _require(
            shape in (whole[:3], (*whole[:3], 1)),
            f"mask must have the image's size, {list(whole[:3])} or {[*whole[:3], 1]}; got {shape}.",
        )
        require_mask(inputs.mask)
    uses_image = inputs.mask is not None or sampling.strength < 1
    _require(
        inputs.image is None or uses_image,
        "strength must be below 1 for an image without a mask, or the image is forgotten; got 1.",
    )
    _require(
        sampling.strength == 1 or inputs.image is not None,
        f"strength must be 1 without an image; got {sampling.strength}.",
    )
    _require(
        sampling.resample == 1 or inputs.mask is not None,
        f"resample must be 1 without a mask; got {sampling.resample}.",
    )


def require_float(**images: jax.Array | None) -> None:
    """Images are floats in [-1, 1]: integers of 0 to 255 would pass as wild pixels."""
    for name, value in images.items():
        _require(
            value is None or jnp.issubdtype(value.dtype, jnp.floating),
            f"{name} must be float in [-1, 1]; got {None if value is None else value.dtype}: x / 127.5 - 1 of 0..255.",
        )


def require_mask(mask: jax.Array) -> None:
    """A mask says 1 or 0; inside jit its values are not known."""
    if not isinstance(mask, jax.core.Tracer):
        values = np.unique(np.asarray(mask))
        _require(
            bool(np.isin(values, (0, 1)).all()),
            f"mask must hold 1 (paint here) and 0 (keep) only; got values from {values[0]:g} to {values[-1]:g}.",
        )


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
