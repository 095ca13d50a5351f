"""Planning: a request to sample a cascade is checked once, before anything is compiled."""

import numbers
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from imagen_jax import arrays
from imagen_jax.checks import Verbatim, error, plain, require
from imagen_jax.config import SamplingConfig, StageConfig, distilled, override
from imagen_jax.config.sampling import GUIDED, check_names
from imagen_jax.config.validation import validate_sampling
from imagen_jax.methods import Method
from imagen_jax.sampling.inputs import (
    Inputs,
    check_inputs,
    check_noise,
    check_pictures,
    check_request,
    check_size,
    needs_null_caption,
    with_former_names,
)
from imagen_jax.sampling.one_stage import check_params, require_stage
from imagen_jax.sampling.recipe import Recipe, Values, recipe_and_values
from imagen_jax.stage import Stage
from imagen_jax.structs import TextCond

# Fields of SamplingConfig that say something to super-resolution stages alone.
_SUPER_RESOLUTION = ("aug_level",)
# And to stages with guidance alone.
_GUIDED = ("guidance", "threshold_at", *GUIDED)


@flax.struct.dataclass
class Plan:
    """A checked request, for `run_cascade`; tuples have one entry for each stage that runs."""

    stages: tuple[Stage, ...]
    texts: tuple[TextCond, ...]  # but one entry for each of several texts with weights
    keys: jax.Array  # [B]
    inputs: tuple[Inputs, ...]  # pictures at the result's size; low_res for the first stage alone
    values: tuple[Values, ...]
    recipes: tuple[Recipe, ...] = flax.struct.field(pytree_node=False)
    sampling: tuple[SamplingConfig, ...] = flax.struct.field(pytree_node=False, default=())  # of recipes and values

    def with_inputs(self, **given: Any) -> "Plan":
        """Return the plan with other arrays of the same kinds, by name, for the stages that have such an input."""
        own = lambda inputs: {name: value for name, value in given.items() if getattr(inputs, name) is not None}
        return self.replace(inputs=tuple(inputs.replace(**own(inputs)) for inputs in self.inputs))

    def only(self, i: int, params: Any) -> "Plan":
        """Return the plan of stage i alone, with its parameters."""
        one = {name: getattr(self, name)[i : i + 1] for name in ("inputs", "values", "recipes", "sampling")}
        return self.replace(stages=(self.stages[i].replace(params=params),), **one)


@with_former_names
def plan_cascade(
    stages: tuple[Stage, ...],
    text: TextCond | Sequence[TextCond],
    keys: jax.Array,
    *,
    start: str | None = None,
    stop: str | None = None,
    low_res: jax.Array | None = None,
    size: tuple[int, int] | None = None,
    image: jax.Array | None = None,
    mask: jax.Array | None = None,
    control: jax.Array | None = None,
    z_1: jax.Array | Sequence[jax.Array | None] | None = None,
    negative: TextCond | None = None,
    null: TextCond | None = None,
    weights: Sequence[float] | None = None,
    weak: Stage | Sequence[Stage | None] | None = None,
    may_be_shapes: bool = False,
    **options: Any,
) -> Plan:
    """Check all that `sample_cascade` is given and say how each stage runs; the only place where that is done.

    Args:
      stages, text, keys, **options: see `sample_cascade`.
      may_be_shapes: text, negative and keys may be of `jax.ShapeDtypeStruct`s, and stages without parameters (None);
        the caller replaces them in the plan.

    Raises:
      ValueError: one line that names the argument.
    """
    stages = select_stages(stages, start, stop)
    weak_stages = _one_each(weak, stages, "weak")
    for each in weak_stages:
        if each is not None:
            check_params("weak", require_stage("weak", each))
    for i, stage in enumerate(stages):
        if stage.params is not None or not may_be_shapes:
            check_params(f"stages[{i}]", stage)
    settings = sampling_by_stage(stages, options, weak_stages)
    sizes = sizes_by_stage(tuple(stage.config for stage in stages), size)
    noises = (z_1, *[None] * (len(stages) - 1)) if arrays.is_array(z_1) else _one_each(z_1, stages, "z_1")
    given = Inputs(low_res=low_res, negative=negative, image=image, mask=mask, control=control, z_1=noises[0])
    texts, weights = check_request(text, keys, weights, given, null=null, may_be_shapes=may_be_shapes)
    for i, noise in enumerate(noises[1:], 1):
        check_noise(f"z_1[{i}]", noise)
    is_guided = any(sampling.is_guided for sampling in settings)
    for stage in () if is_guided else stages:
        distilled.check_unguided(stage.config, "negative", negative is not None)
    rule = "not be 1 (off) in every stage with a negative prompt"
    require(negative is None or is_guided, "guidance_scale", rule, 1)
    check_pictures(given, keys.shape[0], sizes[-1], has_strength=any(s.strength < 1 for s in settings))
    if control is not None:
        require(control.ndim == 4, "control", "be [B, H, W, C]", Verbatim(tuple(control.shape)))
        is_used = any(stage.config.control_channels for stage in stages)
        require(is_used, "control", "be left out: no stage was trained with one (control_channels)", control)
    _check_order(stages)

    all_inputs, made = [], []
    for i, (stage, sampling, size) in enumerate(zip(stages, settings, sizes, strict=True)):
        takes_image = image is not None and (mask is not None or sampling.strength < 1)
        own = Inputs(
            low_res=low_res if i == 0 else None,
            image=image if takes_image else None,
            mask=mask,
            control=control if stage.config.control_channels else None,
            z_1=noises[i],
            negative=negative if sampling.is_guided else None,
            weak=weak_stages[i],
        )
        if negative is None and needs_null_caption(stage.config, sampling, own):
            own = own.replace(negative=null)
        shapes = {name: _at_size(getattr(own, name), size) for name in ("image", "mask", "control")}
        if i > 0:
            shapes["low_res"] = _shape_of_low_res(stage.config, size, keys.shape[0])
        check_inputs(stage.config, texts, keys, own.replace(**shapes), sampling, size)
        all_inputs.append(own)
        made.append(recipe_and_values(stage.config, sampling, size=size, weights=weights))
    recipes, values = zip(*made, strict=True)
    return Plan(stages, texts, keys, tuple(all_inputs), values, recipes, tuple(settings))


def _check_order(stages: tuple[Stage, ...]) -> None:
    """Raises a ValueError unless each stage enlarges what the one before it makes."""
    configs = [stage.config for stage in stages]
    for i, (before, config) in enumerate(zip(configs, configs[1:], strict=False), 1):
        made, taken = (before.image_size, before.image_channels), (config.low_res_size, config.image_channels)
        rule = f"enlarge the images of stage {before.name}, which have {made[0]} pixels a side and {made[1]} channels"
        got = Verbatim(f"stage {config.name} with low_res_size {taken[0]} and image_channels {taken[1]}")
        require(made == taken, f"stages[{i}]", rule, got)


def _shape_of_low_res(config: StageConfig, size: tuple[int, int], batch: int) -> jax.ShapeDtypeStruct:
    """Shape of the previous stage's output."""
    sides = (side * config.low_res_size // config.image_size for side in size)
    return jax.ShapeDtypeStruct((batch, *sides, config.image_channels), jnp.float32)


def select_stages(
    stages: tuple[Stage, ...], start: str | None = None, stop: str | None = None
) -> tuple[Stage, ...]:
    """Return the stages from `start` to `stop`, both by name and both included; all by default."""
    is_list = isinstance(stages, tuple | list) and len(stages) > 0
    fix = "give (stage,)" if isinstance(stages, Stage) else ""
    require(is_list, "stages", "be a tuple of at least one Stage, as from load_cascade", stages, fix)
    for i, stage in enumerate(stages):
        require_stage(f"stages[{i}]", stage)
    names = [stage.config.name for stage in stages]
    require(len(set(names)) == len(names), "stages", "have distinct names", Verbatim(", ".join(names)))
    for end, name in {"start": start, "stop": stop}.items():
        is_stage = name is None or (isinstance(name, str) and name in names)
        require(is_stage, end, f"be a stage, one of {', '.join(names)}", name)
    first = names.index(start or names[0])
    last = names.index(stop or names[-1])
    rule = "not come after stop"
    require(first <= last, "start", rule, Verbatim(f"{names[first]} and {names[last]}"))
    return tuple(stages[first : last + 1])


def sizes_by_stage(
    configs: tuple[StageConfig, ...], size: tuple[int, int] | None = None
) -> list[tuple[int, int]]:
    """(H, W) at every stage for a result of `size`; their own sizes if that is None."""
    size, last = check_size(size), configs[-1].image_size
    if size is None:
        return [(config.image_size,) * 2 for config in configs]
    sizes = []
    for config in configs:
        sides = [side * config.image_size / last for side in size]
        if not all(side > 0 and side % config.network.stride == 0 for side in sides):
            needed = max(c.network.stride * last // c.image_size for c in configs)
            rule = f"be (H, W) in multiples of {needed}, so that every stage gets multiples of its stride"
            raise error("size", rule, size)
        sizes.append(tuple(int(side) for side in sides))
    return sizes


def sampling_by_stage(
    stages: tuple[Stage, ...], options: dict[str, Any], weak: Sequence[Stage | None] | None = None
) -> list[SamplingConfig]:
    """Each stage's own settings with `options` put over them, checked; see `sample_cascade`."""
    is_row = lambda v: arrays.is_array(v) and v.ndim == 1 and arrays.known(v) is not None
    options = {name: v.tolist() if is_row(v) else plain(v) for name, v in options.items()}
    check_names(options)
    for name, value in options.items():
        values = value if isinstance(value, tuple | list) else (value,)
        rule = f"be one value or one for each of the {len(stages)} stages"
        is_right = all(plain(v) is None or isinstance(plain(v), str | numbers.Real | Method) for v in values)
        fix = "inside jax.jit close over it" if isinstance(value, jax.core.Tracer) else ""
        fix = fix or ("give an instance of it" if isinstance(value, type) else "")
        require(is_right, name, rule, value, fix)
        is_right = not isinstance(value, tuple | list) or len(value) == len(stages)
        require(is_right, name, rule, Verbatim(f"{len(values)} values"))
    given = []
    for i, stage in enumerate(stages):
        own = {n: v[i] if isinstance(v, tuple | list) else v for n, v in options.items()}
        own = {name: value for name, value in own.items() if value is not None}
        if not stage.config.is_super_resolution:
            for name in set(own) & set(_SUPER_RESOLUTION):
                is_meant = isinstance(options[name], tuple | list) or len(stages) == 1
                rule = f"be left out (None) for stage {stage.config.name}, which has no low-res image"
                require(not is_meant, name, rule, own[name])
                del own[name]
        given.append(own)
    is_guided = [override(stage.config.sampling, own).is_guided for stage, own in zip(stages, given, strict=True)]
    if any(is_guided):  # one value for all stages is none for those without guidance
        shared = {name for name in _GUIDED if not isinstance(options.get(name), tuple | list)}
        given = [
            own if is_own else {name: value for name, value in own.items() if name not in shared}
            for own, is_own in zip(given, is_guided, strict=True)
        ]
    settings = []
    for i, (stage, own) in enumerate(zip(stages, given, strict=True)):
        sampling = override(stage.config.sampling, own)
        is_weak_given = weak is not None and weak[i] is not None
        settings.append(validate_sampling(stage.config, sampling, needs_null=not is_weak_given))
    return settings


def _one_each(value: Any, stages: tuple[Stage, ...], name: str) -> tuple[Any, ...]:
    if not isinstance(value, tuple | list):
        rule = f"be a tuple of one or None for each of the {len(stages)} stages"
        require(value is None or len(stages) == 1, name, rule, value)
        return (value,) * len(stages)
    rule = f"be one or None for each of the {len(stages)} stages"
    require(len(value) == len(stages), name, rule, Verbatim(str(len(value))))
    return tuple(value)


def _at_size(image: jax.Array | None, size: tuple[int, int]) -> jax.ShapeDtypeStruct | None:
    """The shape of an image or a mask at another size."""
    if image is None:
        return None
    return jax.ShapeDtypeStruct((image.shape[0], *size, *image.shape[3:]), jnp.float32)
