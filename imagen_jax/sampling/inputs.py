"""What a stage is given when it is sampled, and whether it fits, before anything is compiled.

`check_request` looks once at the kinds and values of all that a user gives, `check_pictures` at the sizes of image and
mask; `check_inputs` at what a stage gets of it.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.struct
import jax

from imagen_jax import arrays
from imagen_jax.checks import Verbatim, error, is_whole, plain, require
from imagen_jax.config import SamplingConfig, StageConfig, distilled
from imagen_jax.diffusion import editing, guidance
from imagen_jax.structs import TextCond


@flax.struct.dataclass
class Inputs:
    """What a stage may be given besides text and keys; see `sample_stage`."""

    low_res: jax.Array | None = None
    negative: TextCond | None = None
    weak: Any = None  # a Stage
    image: jax.Array | None = None
    mask: jax.Array | None = None
    control: jax.Array | None = None
    z_1: jax.Array | None = None


FORMER_NAMES = {"cond_image": "control"}


def with_current_names(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs by name with former names replaced by current ones."""
    for old, new in FORMER_NAMES.items():
        rule = f"be left out beside {new}, whose former name it is"
        require(not {old, new} <= set(inputs), old, rule, inputs.get(old))
    return {FORMER_NAMES.get(name, name): value for name, value in inputs.items()}


def with_former_names(function: Callable) -> Callable:
    """Decorate a function so that it takes its inputs by their former names as well."""

    @functools.wraps(function)
    def renamed(*args: Any, **options: Any) -> Any:
        return function(*args, **with_current_names(options))

    return renamed


def check_request(
    text: Any, keys: Any, weights: Any, inputs: Inputs, *, null: Any = None, may_be_shapes: bool = False
) -> tuple[tuple[TextCond, ...], tuple[float, ...] | None]:
    """Check what a user gives, whatever the stages; values too, where they are known.

    Args:
      text: one TextCond, or several with `weights`.
      keys: [B].
      weights: one for each text; they are finite and sum to 1.
      inputs: pictures of any shape; `weak` is not looked at.
      null: the null caption of guidance, a TextCond or None.
      may_be_shapes: text, negative, null and keys may be of `jax.ShapeDtypeStruct`s, checked before they are made.

    Returns:
      (texts, weights) as tuples.

    Raises:
      ValueError: one line.
    """
    fix = "encode captions with TextEncoder.encode"
    texts = tuple(text) if isinstance(text, tuple | list) else (text,)
    rule = "be a TextCond, or a tuple of them with weights"
    for each in texts:
        require(isinstance(each, TextCond), "text", rule, each, fix)
        each.check("text").check_values("text")
    require(len(texts) > 0, "text", rule, text, fix)
    arrays.keys("keys", keys)
    captions = {"negative": inputs.negative, "null": null}
    for name, value in captions.items():
        if value is not None:
            require(isinstance(value, TextCond), name, "be a TextCond", value, fix)
            value.check(name).check_values(name)
    if not may_be_shapes:
        arrays.leaves("text", texts, "as from TextEncoder.encode")
        for name, value in captions.items():
            arrays.leaves(name, value, "as from TextEncoder.encode")
        arrays.leaves("keys", keys, "as from image_keys")
    for name in ("image", "low_res", "control"):
        value = getattr(inputs, name)
        if value is not None:
            arrays.pictures(name, arrays.floats_of_pictures(name, value))
    check_noise("z_1", inputs.z_1)
    if inputs.mask is not None:
        editing.check_mask(inputs.mask)
    return texts, _weights(weights, len(texts))


def _weights(weights: Any, num: int) -> tuple[float, ...] | None:
    if weights is None:
        require(num == 1, "weights", "be given for several texts, one for each", Verbatim(f"none for {num}"))
        return None
    return guidance.check_weights(weights, num)


def check_noise(name: str, value: Any) -> None:
    """Raises a ValueError unless `value` is None or an array of standard normal noise."""
    if value is not None:
        arrays.noise(name, arrays.array(name, value, "floats"))


def check_size(size: Any, name: str = "size") -> tuple[int, int] | None:
    """Return `size` as (H, W), if it is a pair of whole numbers from 1 on, or None."""
    if size is None:
        return None
    size = plain(size.tolist()) if arrays.is_array(size) and arrays.known(size) is not None else size
    is_pair = isinstance(size, tuple | list) and len(size) == 2
    is_right = is_pair and all(is_whole(side) and 1 <= side <= 2**16 for side in size)
    require(is_right, name, "be (H, W), two positive whole numbers of pixels", size)
    return int(size[0]), int(size[1])


def check_pictures(inputs: Inputs, batch: int, size: tuple[int, int], *, has_strength: bool) -> None:
    """Raise a ValueError unless image and mask are of the result's size (H, W), and the image has an effect.

    `has_strength`: whether a stage starts from the image (`strength` below 1).
    """
    image, mask = inputs.image, inputs.mask
    shape = None if image is None else tuple(image.shape)
    if shape is not None:
        is_right = len(shape) == 4 and shape[1:3] == tuple(size)
        rule = f"be [B, H, W, C] of the result's size {tuple(size)}"
        require(is_right, "image", rule, Verbatim(shape), "resize it (imagen_jax.resize.area, bilinear), or give size")
        rule = "be below 1 for an image without a mask, otherwise the image has no effect"
        require(mask is not None or has_strength, "strength", rule, 1)
    if mask is not None:
        whole = (batch, *size)
        is_right = shape is not None and tuple(mask.shape) in (whole, (*whole, 1))
        rule = "have the image's size, [B, H, W] or [B, H, W, 1] (1 = paint here)"
        require(is_right, "mask", rule, Verbatim(f"{tuple(mask.shape)} for image {shape}"))


def needs_null_caption(config: StageConfig, sampling: SamplingConfig, inputs: Inputs) -> bool:
    """Whether guidance of a stage takes what the text encoder returns for the empty string, unless given `negative`."""
    return config.network.reads_empty_caption and sampling.is_guided and inputs.weak is None


def check_inputs(
    config: StageConfig,
    texts: Sequence[TextCond],
    keys: jax.Array,
    inputs: Inputs,
    sampling: SamplingConfig,
    size: tuple[int, int],
) -> None:
    """Raise a ValueError for what does not fit the stage; the arguments, checked by `check_request`, may be shapes."""
    batch, wanted = keys.shape[0], config.text
    for text in texts:
        rows, _, width = text.embeddings.shape
        rule = f"have the width {wanted.width} of {wanted.encoder}, which stage {config.name} was trained with"
        require(width == wanted.width, "text", rule, width)
        require(rows == batch, "text and keys", "have one row per image", Verbatim(f"{rows} and {batch}"))
    shapes = {text.embeddings.shape[1:] for text in texts}
    if inputs.negative is not None:
        rule = "be left out with a weak stage, which takes the null's place"
        require(inputs.weak is None, "negative", rule, Verbatim("both"))
        rows = inputs.negative.mask.shape[0]
        require(rows in (1, batch), "negative", f"have 1 or {batch} rows", rows)
        shapes.add(inputs.negative.embeddings.shape[1:])
    elif needs_null_caption(config, sampling, inputs):
        rule = f"be given to stage {config.name}, which is guided by what the text encoder returns for the empty string"
        fix = "give encoder.encode(['']) at the captions' length; to sample_cascade also as null"
        raise error("negative", rule, None, fix)
    rule = "have equal length and width"
    require(len(shapes) == 1, "texts and negative", rule, sorted(shapes), "encode all at the same length")
    for name in ("negative", "weak"):
        distilled.check_unguided(config, name, getattr(inputs, name) is not None)
    is_needed = inputs.negative is not None or inputs.weak is not None
    rule = "not be 1 (off) with a negative prompt or a weak stage"
    require(sampling.is_guided or not is_needed, "guidance_scale", rule, 1)
    if inputs.weak is not None:
        require(len(texts) == 1, "text", "be one batch with a weak stage", len(texts))
        facts = lambda c: (c.image_channels, c.low_res_size, c.control_channels, c.text.width)
        got = Verbatim(f"{inputs.weak.config.name}, which takes others")
        is_alike = facts(inputs.weak.config) == facts(config)
        require(is_alike, "weak", f"take the inputs of stage {config.name}", got)
    _check_images(config, batch, inputs, sampling, size)


def _check_images(
    config: StageConfig, batch: int, inputs: Inputs, sampling: SamplingConfig, size: tuple[int, int]
) -> None:
    stride = config.network.stride
    rule = f"be (H, W) in multiples of {stride}, the total stride of stage {config.name}"
    require(all(side % stride == 0 for side in size), "size", rule, size)
    rule = "be given to the super-resolution" if config.is_super_resolution else "be None for the base"
    is_right = config.is_super_resolution == (inputs.low_res is not None)
    require(is_right, "low_res", f"{rule} stage {config.name}", inputs.low_res)
    whole = (batch, *size, config.image_channels)
    expected = {"image": whole, "z_1": whole, "control": (*whole[:3], config.control_channels)}
    if config.is_super_resolution:
        height, width = (side * config.low_res_size / config.image_size for side in size)
        rule = f"be a multiple of the stage's factor {config.image_size}/{config.low_res_size}"
        require(height % 1 == width % 1 == 0, "size", rule, size)
        expected["low_res"] = (batch, int(height), int(width), config.image_channels)
    takes_control = config.control_channels > 0
    rule = f"be {'given' if takes_control else 'left out'}: stage {config.name} has control_channels"
    is_right = (inputs.control is not None) == takes_control
    require(is_right, "control", f"{rule} {config.control_channels}", inputs.control)
    for name, shape in expected.items():
        value = getattr(inputs, name)
        if value is not None:
            rule = f"be {list(shape)} for stage {config.name}"
            resizes = name != "z_1" and (value.shape[0], value.shape[-1]) == (shape[0], shape[-1])
            fix = "resize it (imagen_jax.resize.area, bilinear) or give the size that you want" if resizes else ""
            require(tuple(value.shape) == shape, name, rule, Verbatim(tuple(value.shape)), fix)
    is_started = sampling.strength == 1 or inputs.image is not None
    require(is_started, "strength", "be 1 without an image", sampling.strength)
    is_masked = sampling.resample == 1 or inputs.mask is not None
    require(is_masked, "resample", "be 1 without a mask", sampling.resample)
