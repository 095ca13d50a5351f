"""Measure how well the pictures of a cascade agree with their captions.

  imagen-jax evaluate --workdir runs/quickstart --data datasets/shapes_single

Samples the captions of a split and judges the pictures by --metrics. The default, "alignment", reads pictures of
shapes by classical image analysis, and reports the share of right answers by category beside the share for shuffled
captions (chance). Writes grid.png, and METRIC.md and METRIC.json for each metric, to the output directory, in place of
those of an earlier evaluation.
"""

import dataclasses
import itertools
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from imagen_jax import progress
from imagen_jax.cli import parsing
from imagen_jax.cli.sampling_options import AdaptedOptions
from imagen_jax.evaluation import (
    METRICS,
    Models,
    Samples,
    build,
    check_models,
    check_needs,
    needs,
    reference_pictures,
)
from imagen_jax.evaluation.sweep import consistency
from imagen_jax.storage import files
from imagen_jax.storage.locations import Location

_LOGGER = logging.getLogger(__name__)

ROOM = 2**23  # bytes that all files need at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(AdaptedOptions, Models):
    data: Path
    """A data set, for "alignment" one of shapes as imagen-jax prepare --shapes writes it."""
    split: str = "test"
    """test: captions with combinations of color and shape that training never shows."""
    num: int = 200
    """Captions to sample, from the start of the split; all if it has fewer."""
    metrics: tuple[Annotated[str, METRICS], ...] = ("alignment",)
    """Metrics of the pictures."""
    output: Location | None = None
    """Directory for the table and the grid; by default evaluation/ in the workdir, or here with --pretrained."""
    seed: int = 0
    """Seed of the first picture; the next have the seeds after it."""
    batch_size: int = 40
    """Pictures computed at once."""
    best: bool = False
    """Start from the options that imagen-jax sweep found best for --workdir, instead of the preset's."""


def main(options: Options) -> None:
    cascade = options.cascade()
    output = options.output or options.default_output("evaluation")
    names = tuple(dict.fromkeys(options.metrics))
    if not names:
        raise ValueError(f"--metrics must name metrics; got no value: {', '.join(METRICS)}.")
    written = [f"{name}{end}" for name in names for end in (".md", ".json")]
    files.check_directory(output, "--output", needed=ROOM, names=(*written, "grid.png"))
    if files.exists(output / "grid.png") and not any(files.exists(output / f"{name}.json") for name in METRICS):
        raise ValueError(f"--output must have no grid.png of another command; got {output}: name another.")

    from imagen_jax import checks, compilation, grid, load_cascade
    from imagen_jax.data import pipeline, sources
    from imagen_jax.generate import plan_prompts, run_prompts
    from imagen_jax.generate.records import MAX_BATCH
    from imagen_jax.stage_dir import adapter_file
    from imagen_jax.stage_dir.loading import read_cascade
    from imagen_jax.text import encoders

    checks.whole("--num", options.num, 1)
    checks.whole("--batch-size", options.batch_size, 1, MAX_BATCH)
    checks.seed(options.seed, name="--seed")
    source = sources.open_source(options.data, options.split)
    examples = list(pipeline.examples(source, range(min(options.num, len(source)))))
    if not examples:
        raise ValueError(f"--split must hold captions; {options.split} of {options.data} is empty.")
    checks.seed(options.seed, len(examples), "--seed")
    # All options are checked before anything is loaded.
    stages, adapters = read_cascade(cascade, best=options.best), options.adapters()
    adapter_file.fit([each.config for each in stages], adapters)
    given = {"claims": examples[0]["claims"], "reference": True, "low_res": True if len(stages) > 1 else None}
    given["num"] = len(examples)
    for name in names:
        check_needs("--metrics", name, given | options.models(), options.data)
    check_models(options, names)
    captions, claims = ([example[key] for example in examples] for key in ("caption", "claims"))
    seeds = range(options.seed, options.seed + len(captions))
    plan = plan_prompts(stages, captions, seeds=seeds, batch_size=options.batch_size, **options.sampling())
    pictures = None
    if any("reference" in needs(name) for name in names):
        images = [example["image"] for example in examples]
        pictures = reference_pictures(images, plan.cascade.recipes[-1].size, "--data")
    metrics = [build(name, options) for name in names]
    for metric in metrics:
        metric.check_claims(claims, "--data")
    stages = load_cascade(cascade, best=options.best, adapters=adapters)
    compilation.use_compilation_cache()
    drawn = run_prompts(plan, stages, encoders.from_config(stages[0].config.text))
    sampled = progress.over(drawn, len(captions), "pictures", "sampling")
    states, agreement, shown = [metric.init() for metric in metrics], [], []
    for first, batch in zip(itertools.count(step=options.batch_size), _batched(sampled, options.batch_size)):
        by_stage = [np.stack(images) for images in zip(*batch, strict=True)]
        rows = slice(first, first + len(batch))
        samples = Samples(
            images=by_stage[-1],
            captions=captions[rows],
            claims=claims[rows],
            reference=None if pictures is None else pictures[rows],
            low_res=by_stage[-2] if len(by_stage) > 1 else None,
        )
        states = [metric.update(state, samples) for metric, state in zip(metrics, states, strict=True)]
        agreement.append([consistency(*pair) for pair in itertools.pairwise(by_stage)])
        shown += list(by_stage[-1][: 32 - len(shown)])
    results = [metric.result(state) for metric, state in zip(metrics, states, strict=True)]
    lines = [
        f"Output of {stage.config.name} averaged down to {before.config.image_size}x{before.config.image_size} against "
        f"{before.config.name}: PSNR {np.mean(values):.1f} dB on average, {np.min(values):.1f} dB at worst."
        for (before, stage), *parts in zip(itertools.pairwise(stages), *agreement, strict=True)
        for values in [np.concatenate(parts)]
    ]
    reports = [metric.report(result) for metric, result in zip(metrics, results, strict=True)]
    print("\n\n".join([*reports, *lines]))

    labels = grid.labels(list(zip(captions, seeds, strict=True))[:32])
    sheet = grid.encode_png(grid.labelled_grid(shown, labels))
    output.mkdir(parents=True, exist_ok=True)
    for name, result, report in zip(names, results, reports, strict=True):
        files.write(output / f"{name}.md", "\n\n".join([report, *lines]) + "\n")
        files.write_json(output / f"{name}.json", result, indent=2)
    files.write(output / "grid.png", sheet)
    _LOGGER.info(f"Wrote {output}/{', '.join(written)} and grid.png.")


def _batched(items: Iterable[Any], size: int) -> Iterator[list[Any]]:
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def parse(args: list[str]) -> Options:
    return parsing.parse(Options, __doc__, args)
