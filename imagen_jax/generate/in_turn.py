"""Prompts to pictures with one model in memory at a time: the text encoder, then each stage."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from imagen_jax.generate.prompts import PromptPlan, batch_rows, encode_negative, encoding, filled, on_devices
from imagen_jax.sampling.cascade import raise_if_any_broken, run_cascade
from imagen_jax.sampling.plan import Plan
from imagen_jax.stage import Stage
from imagen_jax.structs import TextCond
from imagen_jax.text import encoders


class Encoded(NamedTuple):
    """The prompts of a plan and its negative prompt, encoded: NumPy arrays of one row each."""

    prompts: Mapping[str, TextCond]
    negative: TextCond | None


def encode_prompts(plan: PromptPlan, encoder: encoders.Encoder) -> Encoded:
    """Encode all prompts of a plan, after which the encoder is no longer needed.

    Raises:
      ValueError: the encoder is another one than that of training.
    """
    stages = plan.cascade.stages
    encoded = encoding(plan, stages, encoder)
    negative = encode_negative(plan, stages, encoder)
    return jax.device_get(Encoded({prompt: encoded(prompt) for prompt in dict.fromkeys(plan.prompts)}, negative))


def run_in_turn(
    plan: PromptPlan, encoded: Encoded, load: Mapping[str, Callable[[], Stage]]
) -> Iterator[tuple[np.ndarray, ...]]:
    """Sample the prompts of a plan stage by stage: each is loaded, samples all pictures and is freed.

    The pictures are equal to those of `run_prompts`, to the bit. Those of earlier stages are held in the memory of the
    host, for all prompts.

    Args:
      plan: as from `plan_prompts`, for stages without parameters.
      encoded: its prompts.
      load: by the name of each stage that runs, a function that returns it with its parameters.

    Yields:
      what `generate` yields, once all stages but the last have sampled everything.
    """
    made = [[] for _ in batch_rows(plan)]  # by batch, the images of each stage
    placed = [None] * len(made)  # and how those of the last one lay on the devices
    for i, stage in enumerate(plan.cascade.stages):
        cascade = plan.cascade.only(i, load[stage.config.name]().params)
        cascade = on_devices(plan, cascade, encoded.negative)
        for n, rows in enumerate(batch_rows(plan)):
            batch = filled(plan, cascade, encoded.prompts.__getitem__, rows)
            low_res = jax.device_put(made[n][-1], placed[n]) if i > 0 else None
            images, placed[n] = _sampled(batch, low_res)
            made[n].append(images)
            if i + 1 == len(plan.cascade.stages):
                yield from (tuple(by_stage[k] for by_stage in made[n]) for k in range(rows.stop - rows.start))
                made[n].clear()
        del cascade, batch, low_res  # and the parameters with them


def _sampled(batch: Plan, low_res: jax.Array | None) -> tuple[np.ndarray, Any]:
    """Return the images of a plan of one stage, and how they lay on the devices; low_res: of the stage before it."""
    if low_res is not None:
        batch = batch.replace(inputs=(batch.inputs[0].replace(low_res=low_res),))
    (images,), infos = run_cascade(batch)
    raise_if_any_broken(batch.stages, infos)
    return jax.device_get(images), images.sharding
