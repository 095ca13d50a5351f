"""Measure how well the pictures of a cascade agree with their captions.

  imagen-jax evaluate --workdir runs/quickstart --data datasets/shapes_single

Samples the captions of a split, reads the pictures by classical image analysis, and prints the share
of right answers by category beside the share for shuffled captions (chance). Writes alignment.md,
alignment.json and grid.png to the output directory.
"""

import dataclasses
import logging
from pathlib import Path

import numpy as np

from imagen_jax import progress
from imagen_jax.cli import parsing, program
from imagen_jax.storage import files
from imagen_jax.storage.locations import Location

_LOGGER = logging.getLogger(__name__)

FILES = ("alignment.md", "alignment.json", "grid.png")
ROOM = 2**23  # bytes that they need at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(program.SamplingOptions):
    workdir: Location
    """Directory of the cascade, as imagen-jax train wrote it."""
    data: Path
    """A data set of shapes, as imagen-jax prepare --shapes writes it."""
    split: str = "test"
    """test: captions with combinations of color and shape that training never shows."""
    num: int = 200
    """Captions to sample, from the start of the split."""
    output: Location | None = None
    """Directory for the table and the grid; by default evaluation/ in the workdir."""
    seed: int = 0
    """Seed of the first picture; the next have the seeds after it."""
    batch_size: int = 40
    """Pictures computed at once."""
    best: bool = False
    """Start from the options that imagen-jax sweep found best, instead of the preset's."""


def main(options: Options) -> None:
    output = options.output or options.workdir / "evaluation"
    files.check_directory(output, "--output", needed=ROOM, names=FILES)

    from imagen_jax import TextEncoder, checks, compilation, grid, load_cascade, resize
    from imagen_jax.data import pipeline, sources
    from imagen_jax.evaluation import alignment, sweep
    from imagen_jax.generate import generate
    from imagen_jax.generate.records import MAX_BATCH
    from imagen_jax.sampling.cascade import sampling_by_stage
    from imagen_jax.stage_dir.loading import read_cascade

    checks.whole("--num", options.num, 1)
    checks.whole("--batch-size", options.batch_size, 1, MAX_BATCH)
    checks.seed(options.seed, name="--seed")
    source = sources.open_source(options.data, options.split)
    examples = list(pipeline.examples(source, range(min(options.num, len(source)))))
    if not examples or examples[0]["claims"] is None:
        raise ValueError(
            f"--data must be a data set of shapes, which records what captions claim; got {options.data}."
        )
    checks.seed(options.seed, len(examples), "--seed")
    sampling_by_stage(
        read_cascade(options.workdir, best=options.best), options.sampling()
    )  # before anything is loaded
    stages = load_cascade(options.workdir, best=options.best)
    captions = [example["caption"] for example in examples]
    seeds = range(options.seed, options.seed + len(captions))
    compilation.use_compilation_cache()
    pictures = generate(
        stages,
        TextEncoder.from_config(stages[0].config.text),
        captions,
        seeds=seeds,
        batch_size=options.batch_size,
        **options.sampling(),
    )
    done = progress.over(pictures, len(captions), "pictures", "sampling")
    by_stage = [np.stack(images) for images in zip(*done, strict=True)]
    final = by_stage[-1]
    if final.shape[1] < examples[0]["image"].shape[0]:  # a cascade without its last stage
        final = resize.bilinear(final, examples[0]["image"].shape[0])
    result = alignment.alignment(final, [example["claims"] for example in examples])
    table = alignment.format_table(result)
    consistency = [sweep.consistency(small, big) for small, big in zip(by_stage, by_stage[1:], strict=False)]
    lines = [table, *(
        f"Output of {stage.config.name} averaged down to {before.config.image_size}x{before.config.image_size} against "
        f"{before.config.name}: PSNR {np.mean(values):.1f} dB on average, {np.min(values):.1f} dB at worst."
        for before, stage, values in zip(stages, stages[1:], consistency, strict=False)
    )]  # fmt: skip
    print("\n\n".join(lines))

    labels = grid.labels(list(zip(captions, seeds, strict=True))[:32])
    sheet = grid.encode_png(grid.labelled_grid(list(by_stage[-1][:32]), labels))
    output.mkdir(parents=True, exist_ok=True)
    files.write(output / "alignment.md", "\n\n".join(lines) + "\n")
    files.write_json(output / "alignment.json", result, indent=2)
    files.write(output / "grid.png", sheet)
    _LOGGER.info(f"Wrote {output}/alignment.md, alignment.json and grid.png.")


def parse(args: list[str]) -> Options:
    return parsing.parse(Options, __doc__, args)
