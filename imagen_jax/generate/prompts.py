"""Prompts to pictures: encoding, batching and padding around `sample_cascade`."""

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import jax
import numpy as np

from imagen_jax import arrays, checks, sharding
from imagen_jax.checks import Verbatim, error, require
from imagen_jax.generate import pmapped
from imagen_jax.sampling.cascade import raise_if_any_broken, run_cascade
from imagen_jax.sampling.inputs import with_current_names
from imagen_jax.sampling.plan import Plan, plan_cascade, select_stages
from imagen_jax.stage import Stage, image_keys
from imagen_jax.structs import TextCond
from imagen_jax.text import encoders


@dataclasses.dataclass(frozen=True)
class PromptPlan:
    """A checked request to sample prompts, for `run_prompts`.

    Attributes:
      cascade: of all prompts, with shapes in place of text and keys; its stages may lack their parameters.
      prompts: the captions.
      seeds: one for each prompt.
      negative: the prompt to steer away from, or None.
      images: arrays by the names in `pmapped.BY_IMAGE`, one row for each prompt.
      batch_size: rows of each batch, a multiple of the devices.
      fsdp: devices that share each copy of the parameters.
    """

    cascade: Plan
    prompts: Sequence[str]
    seeds: Sequence[int]
    negative: str | None
    images: Mapping[str, np.ndarray]
    batch_size: int
    fsdp: int


def generate(
    stages: tuple[Stage, ...], encoder: encoders.Encoder, prompts: Sequence[str], **options: Any
) -> Iterator[tuple[np.ndarray, ...]]:
    """Sample prompts[i] with seed seeds[i], in compiled batches of one size, over all devices.

    An image depends on its prompt and its seed alone: to the bit for the same batch size and row of the batch,
    whatever the other rows hold, and to rounding for any other. No more than a batch is held at a time.

    Args:
      stages: as from `load_cascade`.
      encoder: the one that the stages were trained with.
      prompts, **options: see `plan_prompts`.

    Yields:
      for each prompt in order, its image after every stage: [h, w, C] float32 in [-1, 1].

    Raises:
      ValueError: at the call, for whatever cannot be sampled; one line that names the argument.
    """
    return run_prompts(plan_prompts(stages, prompts, **options), stages, encoder)


def plan_prompts(
    stages: tuple[Stage, ...],
    prompts: Sequence[str],
    *,
    seeds: Sequence[int],
    batch_size: int = 16,
    fsdp: int = 1,
    negative: str | None = None,
    images: Mapping[str, np.ndarray] | None = None,
    **options: Any,
) -> PromptPlan:
    """Check a request to sample prompts, all of it but the encoder; nothing is loaded or compiled.

    Args:
      stages: as from `load_cascade`, or without parameters as from `read_cascade`.
      prompts: any number of captions.
      seeds: one for each prompt.
      batch_size: images computed at once; see `whole_batch`.
      fsdp: devices that share each copy of the parameters.
      negative: a prompt to steer away from.
      images: "low_res", "image", "mask", "control", "z_1" of `sample_cascade`, one row for each prompt.
      **options: of `sample_cascade`.

    Raises:
      ValueError: one line that names the argument.
    """
    require(isinstance(prompts, list | tuple) and len(prompts) > 0, "prompts", "be a list of at least one str", prompts)
    for i, prompt in enumerate(prompts):
        checks.text(f"prompts[{i}]", prompt, may_be_empty=True)
    if negative is not None:
        checks.text("negative", negative, may_be_empty=True)
    seeds = checks.seeds(seeds)
    rule = f"be a dict of arrays with keys among {', '.join(pmapped.BY_IMAGE)}"
    require(images is None or isinstance(images, Mapping), "images", rule, images)
    images = {name: rows for name, rows in with_current_names(images or {}).items() if rows is not None}
    require(set(images) <= set(pmapped.BY_IMAGE), "images", rule, images)
    options = with_current_names(options)
    for name, rows in images.items():
        require(arrays.is_array(rows) and rows.ndim > 0, name, "be an array of one row for each prompt", rows)
    counts = {"seeds": len(seeds), **{name: len(rows) for name, rows in images.items()}}
    wrong = [f"{count} {name}" for name, count in counts.items() if count != len(prompts)]
    got = Verbatim(f"{len(prompts)} prompts and {', '.join(wrong)}")
    require(not wrong, "prompts", "have one row of everything else each", got)
    for name in {"text", "keys", "null", "may_be_shapes"} & set(options):
        raise error(name, "be left out: it is made from prompts and seeds", options[name])
    for name in set(pmapped.BY_IMAGE) & {name for name, value in options.items() if value is not None}:
        raise error(name, "be given in images, with one row for each prompt", options[name])
    batch_size = whole_batch(batch_size, len(prompts), fsdp)
    keys = jax.eval_shape(lambda: image_keys(0, len(prompts)))
    given = options | {"null" if negative is None else "negative": text_shape(stages, 1)}
    shapes = text_shape(stages, len(prompts))
    cascade = plan_cascade(stages, shapes, keys, may_be_shapes=True, **images, **given)
    return PromptPlan(cascade, prompts, seeds, negative, images, batch_size, fsdp)


def run_prompts(
    plan: PromptPlan, stages: tuple[Stage, ...], encoder: encoders.Encoder
) -> Iterator[tuple[np.ndarray, ...]]:
    """Sample the prompts of a plan.

    Args:
      plan: as from `plan_prompts`.
      stages: those of the plan with their parameters.
      encoder: the one that the stages were trained with.

    Yields:
      what `generate` yields.

    Raises:
      ValueError: at the call; the encoder is another one.
    """
    encoded = functools.lru_cache(maxsize=plan.batch_size)(encoding(plan, stages, encoder))
    params = {stage.config.name: stage.params for stage in stages}
    chosen = tuple(stage.replace(params=params[stage.config.name]) for stage in plan.cascade.stages)
    cascade = on_devices(plan, plan.cascade.replace(stages=chosen), encode_negative(plan, stages, encoder))

    def batches() -> Iterator[tuple[np.ndarray, ...]]:
        for rows in batch_rows(plan):
            batch = filled(plan, cascade, encoded, rows)
            results, infos = run_cascade(batch)
            raise_if_any_broken(batch.stages, infos)
            results = jax.device_get(results)
            for i in range(rows.stop - rows.start):
                yield tuple(stage_images[i] for stage_images in results)

    return batches()


def encoding(
    plan: PromptPlan, stages: tuple[Stage, ...], encoder: encoders.Encoder
) -> Callable[[str], TextCond]:
    """Return a function that encodes a prompt, after all are checked, and those too long warned of.

    Raises:
      ValueError: the encoder is another one than that of training.
    """
    _check_encoder(stages, encoder)
    if hasattr(encoder, "tokenize"):
        encoder.tokenize([*dict.fromkeys(plan.prompts)], stages[0].config.text.length)

    def encoded(prompt: str) -> TextCond:
        # One by one: in a batch its rounding would depend on the other prompts.
        with warnings.catch_warnings(action="ignore"):
            return encode(stages, encoder, [prompt])

    return encoded


def encode_negative(
    plan: PromptPlan, stages: tuple[Stage, ...], encoder: encoders.Encoder
) -> TextCond | None:
    """Return the encoded prompt to steer away from [1, L, D], or the empty one as null caption; None if no stage takes
    one."""
    is_taken = any(own.negative is not None for own in plan.cascade.inputs)
    return encode(stages, encoder, [plan.negative or ""]) if is_taken else None


def on_devices(plan: PromptPlan, cascade: Plan, negative: TextCond | None) -> Plan:
    """Return the cascade with its parameters, and the encoded negative prompt, on the devices of the plan."""
    mesh = sharding.make_mesh(plan.fsdp)
    weak = [sharding.shard_params(own.weak, mesh) for own in cascade.inputs]
    inputs = tuple(own.replace(weak=each) for own, each in zip(cascade.inputs, weak, strict=True))
    cascade = cascade.replace(stages=sharding.shard_params(cascade.stages, mesh), inputs=inputs)
    return cascade if negative is None else cascade.with_inputs(negative=sharding.replicate(negative, mesh))


def batch_rows(plan: PromptPlan) -> Iterator[slice]:
    """Yield the rows of each batch among all prompts."""
    for start in range(0, len(plan.prompts), plan.batch_size):
        yield slice(start, min(start + plan.batch_size, len(plan.prompts)))


def filled(plan: PromptPlan, cascade: Plan, encoded: Callable[[str], TextCond], rows: slice) -> Plan:
    """Return the cascade with the arrays of one batch, padded to its whole size."""
    text = jax.tree.map(lambda *parts: jax.numpy.concatenate(parts), *map(encoded, plan.prompts[rows]))
    keys = jax.numpy.concatenate([image_keys(seed, 1) for seed in plan.seeds[rows]])
    own = text, keys, jax.tree.map(itemgetter(rows), plan.images)
    text, keys, by_image = sharding.pad_batch(own, plan.batch_size, sharding.make_mesh(plan.fsdp))
    return cascade.with_inputs(**by_image).replace(texts=(text,), keys=keys)


def whole_batch(batch_size: int, num: int, fsdp: int = 1) -> int:
    """Return the rows of each batch of `num` images: at most `batch_size`, rounded up to a multiple of the devices."""
    rows = min(checks.whole("batch_size", batch_size, 1), checks.whole("num", num, 1))
    return rows + -rows % sharding.num_batch_shards(sharding.make_mesh(fsdp))


def text_shape(stages: tuple[Stage, ...], rows: int) -> TextCond:
    """Return the shapes of encoded captions as the stages were trained with."""
    settings = select_stages(stages)[0].config.text
    return TextCond(
        jax.ShapeDtypeStruct((rows, settings.length, settings.width), np.float32),
        jax.ShapeDtypeStruct((rows, settings.length), bool),
    )


def encode(stages: tuple[Stage, ...], encoder: encoders.Encoder, prompts: Sequence[str]) -> TextCond:
    """Encode captions at the length that the stages were trained with; a warning says which are cut."""
    _check_encoder(select_stages(stages), encoder)
    return encoders.encode(encoder, prompts, stages[0].config.text.length)


def _check_encoder(stages: tuple[Stage, ...], encoder: encoders.Encoder) -> None:
    encoders.check(encoder, has_fingerprint=False)
    settings = stages[0].config.text
    rule = f"be the one of training, {settings.encoder} of width {settings.width}"
    got = Verbatim(f"{encoder.name} of width {encoder.width}")
    require(encoder.width == settings.width, "encoder", rule, got)
