"""Requests of imagen-jax sample: checked once, then sampled to pictures with their records."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

import imagen_jax
from imagen_jax import checks, sharding
from imagen_jax.config import IFUNetConfig, SamplingConfig, StageConfig
from imagen_jax.generate.in_turn import encode_prompts, run_in_turn
from imagen_jax.generate.prompts import PromptPlan, plan_prompts, run_prompts
from imagen_jax.generate.records import MAX_BATCH, AdapterFile, InputFile, Record
from imagen_jax.sampling import fitting
from imagen_jax.sampling.plan import select_stages
from imagen_jax.stage import Stage
from imagen_jax.stage_dir import adapter_file, loading, pretrained
from imagen_jax.storage import locations
from imagen_jax.text import encoders
from imagen_jax.text.pretrained import NotFound

MAX_PICTURES = 100_000  # of one request
MAX_SIDE = 2**14  # pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Prompts, options and input files of one call of imagen-jax sample.

    Attributes:
      workdir: of the cascade, as `load_cascade` takes it.
      jobs: (prompt, seed) of each picture.
      options: sampling options, as of `sample_cascade`.
      best: whether to start from the options that imagen-jax sweep found best.
      sampling: all sampling options by the name of the stage, instead of `options` and `best`.
      checkpoints: to load instead of the newest, by the name of the stage, as `steps` of `load_cascade`.
      adapters: weights by the path of the adapter, as of `load_cascade`.
      encoder: fingerprint that the text encoder must have; None: any.
      text_encoder: its directory or name; None: as in training.
      text_dtype: type of its weights, as of `TextConfig`; None: that of training.
      start, stop, size: as of `sample_cascade`.
      negative: a prompt to steer away from.
      inputs: files by "image", "mask" and "low_res".
      outpaint: shares in percent to paint around the image: top, bottom, left, right.
      batch_size, fsdp: as of `plan_prompts`.
      one_at_a_time: whether the text encoder and each stage are loaded, used and freed one after another.
    """

    workdir: loading.Places
    jobs: Sequence[tuple[str, int]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    best: bool = False
    sampling: Mapping[str, SamplingConfig] | None = None
    checkpoints: Mapping[str, int | str] | None = None
    adapters: Mapping[str, float] = dataclasses.field(default_factory=dict)
    encoder: str | None = None
    text_encoder: str | None = None
    text_dtype: str | None = None
    start: str | None = None
    stop: str | None = None
    size: tuple[int, int] | None = None
    negative: str | None = None
    inputs: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    outpaint: tuple[int, int, int, int] | None = None
    batch_size: int = 16
    fsdp: int = 1
    one_at_a_time: bool = False


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A request that has been checked, before any parameters are loaded.

    Attributes:
      request: the request.
      plan: of its prompts, for stages without parameters.
      fitted: its adapters.
      report: a line about the mask, or "".
    """

    request: Request
    plan: PromptPlan
    fitted: Sequence[adapter_file.Fitted]
    report: str

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the results in pixels."""
        return self.plan.cascade.recipes[-1].size


def jobs(prompts: Sequence[str], seed: int, num: int) -> list[tuple[str, int]]:
    """Return (prompt, seed) of `num` pictures for each prompt, with the seeds `seed`, `seed` + 1, ...

    Raises:
      ValueError: there would be more than MAX_PICTURES, or a seed is out of range.
    """
    most = max(1, MAX_PICTURES // len(prompts))
    fix = "sample the rest with another --seed" if isinstance(num, int) and num > most else ""
    checks.whole("--num", num, 1, most, fix)
    checks.require(len(prompts) <= MAX_PICTURES, "prompts", f"be at most {MAX_PICTURES}", len(prompts), "split them")
    checks.seed(seed, num, "--seed")
    return [(prompt, seed + i) for prompt in prompts for i in range(num)]


def prepare(request: Request) -> Prepared:
    """Check a request and read its input files, before any parameters are loaded.

    Raises:
      ValueError: one line; what is asked for does not fit the cascade, or goes beyond the limits.
      OSError: a file cannot be read.
    """
    checks.whole("--batch-size", request.batch_size, 1, MAX_BATCH)
    for side in request.size or ():
        checks.whole("--size", side, 1, MAX_SIDE)
    num = jax.device_count()
    fsdp = checks.whole("--fsdp", request.fsdp, 1)
    checks.require(num % fsdp == 0, "--fsdp", f"be a divisor of the {num} devices", fsdp)
    stages = _recorded_sampling(request, loading.read_cascade(request.workdir, best=request.best))
    stages = tuple(_reading(each, request.text_encoder) for each in stages)
    configs = tuple(stage.config for stage in select_stages(stages, request.start, request.stop))
    fitted = adapter_file.fit(configs, request.adapters)
    images, report = fitting.fit_inputs(configs, request.inputs, size=request.size, outpaint=request.outpaint)
    plan = plan_prompts(
        stages,
        [prompt for prompt, _ in request.jobs],
        seeds=[seed for _, seed in request.jobs],
        batch_size=request.batch_size,
        fsdp=fsdp,
        negative=request.negative,
        images={name: np.broadcast_to(x, (len(request.jobs), *x.shape)) for name, x in images.items()},
        start=request.start,
        stop=request.stop,
        size=request.size,
        **request.options,
    )
    return Prepared(request, plan, fitted, report)


def draw(prepared: Prepared) -> Iterator[tuple[Record, np.ndarray]]:
    """Load the cascade and sample: yield (record, float32 [H, W, C] in [-1, 1]) of each job in order.

    Raises:
      ValueError: one line; the cascade cannot be loaded, or the text encoder is another one.
    """
    request, plan = prepared.request, prepared.plan
    stages, steps, mesh = (), {}, sharding.make_mesh(plan.fsdp)
    encoder = _encoder(plan.cascade.stages[0].config, request.text_dtype)
    if request.encoder not in (None, encoder.fingerprint):
        raise ValueError(
            f"the text encoder must be the one that is recorded, of fingerprint {request.encoder}; got "
            f"{encoder.name} of fingerprint {encoder.fingerprint}: restore its files."
        )
    if not request.one_at_a_time:
        stages, steps = loading.load_cascade(request.workdir, steps=request.checkpoints, return_steps=True, mesh=mesh)
        stages = adapter_file.apply(stages, prepared.fitted)
    names = [stage.config.name for stage in plan.cascade.stages]
    record = Record(
        prompt="",
        seed=0,
        sampling=dict(zip(names, plan.cascade.sampling, strict=True)),
        negative=request.negative,
        size=prepared.size,
        outpaint=request.outpaint,
        workdir=_recorded_workdir(request.workdir),
        checkpoints={},
        adapters=tuple(
            AdapterFile(_recorded_place(path), each.adapter.sha256, each.weight)
            for path, each in zip(request.adapters, prepared.fitted, strict=True)
        ),
        encoder=encoder.fingerprint,
        text_encoder=_recorded_encoder(request.text_encoder),
        text_dtype=request.text_dtype,
        batch_size=plan.batch_size,
        row=0,
        fsdp=request.fsdp,
        devices=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        versions={"imagen_jax": imagen_jax.__version__, "jax": jax.__version__},
        **{name: InputFile.of(name, path) for name, path in request.inputs.items()},
    )
    if request.one_at_a_time:
        encoded = encode_prompts(plan, encoder)
        loaders = loading.stage_loaders(request.workdir, request.checkpoints, mesh)
        load = {name: partial(_load, loaders[name], prepared.fitted, steps) for name in names}
        pictures = run_in_turn(plan, encoded, load)
    else:
        pictures = run_prompts(plan, stages, encoder)
    del encoder  # and its parameters, unless they are needed again
    for i, ((prompt, seed), by_stage) in enumerate(zip(request.jobs, pictures, strict=True)):
        which = {name: steps[name] for name in names}
        own = dataclasses.replace(record, prompt=prompt, seed=seed, row=i % record.batch_size, checkpoints=which)
        yield own, by_stage[-1]


def _reading(stage: Stage, text_encoder: str | None) -> Stage:
    """Return the stage with captions by a text encoder of another place; None: that of training."""
    if text_encoder is None:
        return stage
    text = dataclasses.replace(stage.config.text, encoder=checks.text("--text-encoder", text_encoder))
    return stage.replace(config=dataclasses.replace(stage.config, text=text))


def _encoder(config: StageConfig, dtype: str | None) -> encoders.Encoder:
    """Return the text encoder of a stage, with weights of type `dtype`, None: that of training.

    Raises:
      ValueError: one line; it is not there, or cannot be read.
    """
    text = config.text
    try:
        return encoders.from_config(dataclasses.replace(text, dtype=dtype or text.dtype))
    except NotFound as missing:
        rule = f"name the text encoder that stage {config.name} was trained with"
        got = checks.Verbatim(f"{checks.shown(text.encoder)}, which {missing.reason}")
        fix = "give its directory"
        if isinstance(config.network, IFUNetConfig):
            fix += ", or that of a pipeline of DeepFloyd IF with text_encoder and tokenizer"
        raise checks.error("--text-encoder", rule, got, fix) from missing


def _recorded_encoder(place: str | None) -> str | None:
    """Return the text from which another process finds a text encoder again."""
    return place if place is None or not os.path.isdir(place) else os.path.abspath(place)


def _load(
    load: Callable[[], tuple[Stage, int | str]],
    fitted: Sequence[adapter_file.Fitted],
    steps: dict[str, int | str],
) -> Stage:
    """Return load()'s stage with its adapters; note in `steps` which parameters these are."""
    stage, which = load()
    name = stage.config.name
    steps[name] = which
    (stage,) = adapter_file.apply((stage,), [each for each in fitted if each.stage == name])
    return stage


def _recorded_workdir(workdir: loading.Places) -> str | tuple[str, ...]:
    """Return the text, or those, from which another process finds the cascade again."""
    if isinstance(workdir, list | tuple):
        return tuple(map(_recorded_workdir, workdir))
    return os.fspath(workdir) if pretrained.is_name(workdir) else _recorded_place(workdir)


def _recorded_place(place: str | Path) -> str:
    return os.fspath(place) if locations.is_remote(place) else os.path.abspath(place)


def _recorded_sampling(request: Request, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the stages with the sampling options of the record that the request is made from, if it is."""
    if request.sampling is None:
        return stages
    names = [stage.config.name for stage in stages]
    if {request.start, request.stop} <= {None, *names}:
        names = [stage.config.name for stage in select_stages(stages, request.start, request.stop)]
    if names != list(request.sampling):
        raise ValueError(
            f"--workdir must hold the stages {', '.join(request.sampling)} in a row; {request.workdir} has "
            f"{', '.join(names)}: give the directory of the right cascade."
        )
    configs = {stage.config.name: stage.config for stage in stages}
    configs |= {name: dataclasses.replace(configs[name], sampling=own) for name, own in request.sampling.items()}
    return tuple(stage.replace(config=configs[stage.config.name]) for stage in stages)
