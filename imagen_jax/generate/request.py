"""A request for pictures, from its check to the pictures with their records."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import imagen_jax
from imagen_jax import checks
from imagen_jax.config import SamplingConfig
from imagen_jax.generate import records
from imagen_jax.generate.prompts import generate, whole_batch
from imagen_jax.generate.records import MAX_BATCH, InputFile, Record
from imagen_jax.sampling import fitting
from imagen_jax.sampling.plan import sampling_by_stage, select_stages, sizes_by_stage
from imagen_jax.stage import Stage
from imagen_jax.stage_dir import loading
from imagen_jax.storage import files, locations
from imagen_jax.text import encoders

MAX_PICTURES = 100_000  # of one request
MAX_SIDE = 2**14  # pixels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """Prompts, options and input files of one call of sample.py.

    Attributes:
      workdir: of the cascade.
      jobs: (prompt, seed) of each picture.
      options: sampling options, as of `sample_cascade`.
      best: start from the options that imagen-jax sweep found best.
      sampling: by stage, all sampling options; instead of `options` and `best`.
      checkpoints: by stage, the step of the checkpoint to load instead of the newest.
      encoder: fingerprint that the text encoder must have.
      start, stop, size, negative: as of `sample_cascade`; the negative prompt as text.
      inputs: files by "image", "mask" and "low_res".
      outpaint: shares in percent to paint around the image: top, bottom, left, right.
      batch_size, fsdp: as of `generate`.
    """

    workdir: Path
    jobs: Sequence[tuple[str, int]]
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    best: bool = False
    sampling: Mapping[str, SamplingConfig] | None = None
    checkpoints: Mapping[str, int] | None = None
    encoder: str | None = None
    start: str | None = None
    stop: str | None = None
    size: tuple[int, int] | None = None
    negative: str | None = None
    inputs: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    outpaint: tuple[int, int, int, int] | None = None
    batch_size: int = 16
    fsdp: int = 1


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A request that has been checked as far as is possible without parameters.

    Attributes:
      request: the request.
      sampling: by the name of each stage that will run, its sampling options.
      size: (height, width) of the results in pixels.
      rows: of each batch.
      images: arguments of `sample_cascade` by name, each [H, W, C] without the batch.
      report: a line about the mask, or "".
    """

    request: Request
    sampling: dict[str, SamplingConfig]
    size: tuple[int, int]
    rows: int
    images: dict[str, np.ndarray]
    report: str


def jobs(prompts: Sequence[str], seed: int, num: int) -> list[tuple[str, int]]:
    """(prompt, seed) for `num` pictures of each prompt, of the seeds `seed`, `seed` + 1, ...

    Raises:
      ValueError: there would be more than MAX_PICTURES, or a seed is none.
    """
    checks.whole("--num", num, 1, max(1, MAX_PICTURES // len(prompts)), "sample the rest with another --seed")
    checks.require(
        len(prompts) <= MAX_PICTURES, "prompts", f"be at most {MAX_PICTURES}", len(prompts), "split them"
    )
    checks.seed(seed, num, "--seed")
    return [(prompt, seed + i) for prompt in prompts for i in range(num)]


def prepare(request: Request) -> Prepared:
    """Checks a request and reads its input files, before any parameters are loaded.

    Raises:
      ValueError: one line; what is asked for does not fit the cascade, or goes beyond the limits.
      OSError: a file cannot be read.
    """
    checks.whole("--batch-size", request.batch_size, 1, MAX_BATCH)
    for prompt in dict.fromkeys(prompt for prompt, _ in request.jobs):
        checks.text("--prompts", prompt, may_be_empty=True)
    if request.negative is not None:
        checks.text("--negative", request.negative, may_be_empty=True)
    for side in request.size or ():
        checks.whole("--size", side, 1, MAX_SIDE)
    num = jax.device_count()
    fsdp = checks.whole("--fsdp", request.fsdp, 1)
    checks.require(num % fsdp == 0, "--fsdp", f"be a divisor of the {num} devices", fsdp)
    rows = whole_batch(request.batch_size, len(request.jobs), request.fsdp)
    chosen = _chosen(request, loading.read_cascade(request.workdir, best=request.best))
    settings = sampling_by_stage(chosen, dict(request.options))
    configs = tuple(stage.config for stage in chosen)
    images, report = fitting.fit_inputs(configs, request.inputs, size=request.size, outpaint=request.outpaint)
    names = [config.name for config in configs]
    size = sizes_by_stage(configs, request.size)[-1]
    return Prepared(request, dict(zip(names, settings, strict=True)), size, rows, images, report)


def draw(prepared: Prepared) -> Iterator[tuple[Record, np.ndarray]]:
    """Loads the cascade and samples: yields (record, float32 [H, W, C] in [-1, 1]) of each job in order.

    Raises:
      ValueError: one line; the cascade, the encoder or the devices do not fit the request.
    """
    request, workdir = prepared.request, prepared.request.workdir
    loaded, steps = loading.load_cascade(
        workdir, best=request.best, steps=request.checkpoints, return_steps=True
    )
    stages = tuple(_with_sampling(request, stage) for stage in loaded)
    encoder = encoders.from_config(stages[0].config.text)
    if request.encoder not in (None, encoder.fingerprint):
        raise ValueError(
            f"the text encoder must be the one that is recorded, of fingerprint {request.encoder}; got "
            f"{encoder.name} of fingerprint {encoder.fingerprint}: restore its files."
        )
    record = Record(
        prompt="",
        seed=0,
        sampling=prepared.sampling,
        negative=request.negative,
        size=prepared.size,
        outpaint=request.outpaint,
        workdir=os.path.abspath(workdir) if not locations.is_remote(workdir) else os.fspath(workdir),
        checkpoints={name: steps[name] for name in prepared.sampling},
        encoder=encoder.fingerprint,
        batch_size=prepared.rows,
        row=0,
        fsdp=request.fsdp,
        devices=f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        versions={"imagen_jax": imagen_jax.__version__, "jax": jax.__version__},
        **{name: InputFile.of(name, path) for name, path in request.inputs.items()},
    )
    num = len(request.jobs)
    pictures = generate(
        stages,
        encoder,
        [prompt for prompt, _ in request.jobs],
        seeds=[seed for _, seed in request.jobs],
        batch_size=request.batch_size,
        fsdp=request.fsdp,
        negative=request.negative,
        images={name: np.broadcast_to(x, (num, *x.shape)) for name, x in prepared.images.items()},
        start=request.start,
        stop=request.stop,
        size=request.size,
        **request.options,
    )
    for i, ((prompt, seed), by_stage) in enumerate(zip(request.jobs, pictures, strict=True)):
        own = dataclasses.replace(record, prompt=prompt, seed=seed, row=i % record.batch_size)
        yield own, by_stage[-1]


def repeating(
    record: Record,
    *,
    workdir: Path | None = None,
    inputs: Mapping[str, Path] | None = None,
    batch_size: int | None = None,
) -> Request:
    """The request that makes a recorded picture again, as its job number `record.row`.

    The whole batch is filled with this picture: the same program computes the same row of it, so that it is the same
    to the bit. With another `batch_size` it is the first job, and the same to rounding.

    Args:
      record: of the picture.
      workdir: of the cascade, if it is not where it was.
      inputs: files by name that are not where they were.
      batch_size: of the batch, if another one than recorded.

    Raises:
      ValueError: one line; a file is not there, or is not the one that was used.
    """
    rows = record.batch_size if batch_size is None else batch_size
    names = list(record.sampling)
    return Request(
        workdir=_place(record.workdir, workdir, "--workdir", "the directory of the cascade"),
        jobs=[(record.prompt, record.seed)] * checks.whole("--batch-size", rows, 1, MAX_BATCH),
        sampling=record.sampling,
        checkpoints=record.checkpoints,
        encoder=record.encoder,
        start=names[0],
        stop=names[-1],
        size=record.size,
        negative=record.negative,
        inputs=_recorded_inputs(record, inputs or {}),
        outpaint=record.outpaint,
        batch_size=rows,
        fsdp=record.fsdp,
    )


def _recorded_inputs(record: Record, given: Mapping[str, Path]) -> dict[str, Path]:
    """Where the files are that the picture was made from; each has the bytes that it had."""
    found = {}
    for name in records.INPUTS:
        option, recorded = records.option(name), getattr(record, name)
        if recorded is None:
            if name in given:
                raise ValueError(
                    f"{option} must be left out: the picture was made without; got {given[name]}."
                )
            continue
        path = _place(recorded.path, given.get(name), option, "the file that the picture was made from")
        sha256 = InputFile.of(name, path).sha256
        if sha256 != recorded.sha256:
            raise ValueError(
                f"{option} must be the file that the picture was made from, of sha256 {recorded.sha256[:16]}...; "
                f"{path} has {sha256[:16]}...: give {option} with the place of the right one."
            )
        found[name] = path
    return found


def _place(recorded: str, given: Path | None, option: str, what: str) -> Path:
    path = locations.location(recorded, option) if given is None else given
    if not files.exists(path):
        raise ValueError(f"{option} must be {what}; {path} does not exist: give {option} with its place now.")
    return path


def _chosen(request: Request, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """The stages that run, with the sampling options of the request if it has all of them."""
    chosen = select_stages(stages, request.start, request.stop)
    names = [stage.config.name for stage in chosen]
    if request.sampling is not None and names != list(request.sampling):
        raise ValueError(
            f"--workdir must hold the stages {', '.join(request.sampling)} in a row; {request.workdir} has "
            f"{', '.join(names)}: give the directory of the right cascade."
        )
    return tuple(_with_sampling(request, stage) for stage in chosen)


def _with_sampling(request: Request, stage: Stage) -> Stage:
    sampling = (request.sampling or {}).get(stage.config.name)
    return (
        stage
        if sampling is None
        else stage.replace(config=dataclasses.replace(stage.config, sampling=sampling))
    )
