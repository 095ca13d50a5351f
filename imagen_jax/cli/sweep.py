"""Try combinations of sampling options, score each on the same prompts and seeds, and keep the best.

  imagen-jax sweep --workdir runs/quickstart --data datasets/shapes_single \\
    --aug-level 0.0 0.1 0.2 0.3 --guidance-scale 2 3 5 --steps 10 32
  imagen-jax sweep --workdir runs/photos --prompts-file prompts.txt --clip openai/clip-vit-base-patch32 \\
    --steps 10 20 40 --sampler unipc ddim

Each sampling option takes the values to try; all combinations are sampled, in every stage or in --stage alone.
Metrics: "alignment", the share of the claims of a caption of shapes that its picture fulfils (--data); "clip", the
cosine of picture and caption (--clip); "recognition", whether subject and style of icons are recognised (--data,
--recogniser); "consistency", the PSNR of the result averaged down against the stage before in dB; "frechet", the
distance of the results to the pictures of the split (--data; evaluation/frechet.py). The score is a metric that has a
value for every picture, which "frechet" has not. Cost: images put through the networks for one result. Writes to the
output directory, in place of an earlier sweep's files:

  sweep.md, sweep.json  the whole table
  pareto.png            score against cost, with the settings that none beats in both
  best/*.png, best.png  for each prompt the picture that scored highest
  WORKDIR/sampling.json the setting with the highest mean score, for imagen-jax sample --best; with --pretrained it is
                        in the output directory
"""

import dataclasses
import io
import logging
import math
from pathlib import Path
from typing import Annotated

import numpy as np

from imagen_jax import progress
from imagen_jax.cli import parsing
from imagen_jax.cli.sampling_options import SamplingOptions
from imagen_jax.evaluation import (
    METRICS,
    Metric,
    Models,
    Samples,
    build,
    check_models,
    check_needs,
    is_per_picture,
    missing,
    needs,
    reference_pictures,
    sweep,
)
from imagen_jax.evaluation.metrics import Given
from imagen_jax.storage import files
from imagen_jax.storage.locations import Location

_LOGGER = logging.getLogger(__name__)

MAX_SETTINGS = 10_000
FILES = ("sweep.md", "sweep.json", "pareto.png", "best.png")
ROOM = 2**23  # bytes that they need at most


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(SamplingOptions, Models):
    data: Path | None = None
    """A data set, for its captions and what they claim."""
    split: str = "test"
    """Split of the data set."""
    prompts_file: Path | None = None
    """A text file with one prompt per line, instead of --data; lines that begin with # are comments."""
    score: Annotated[str, METRICS] | None = None
    """The metric that decides; by default the first that has what it needs and a value for each picture."""
    metrics: tuple[Annotated[str, METRICS], ...] = ()
    """Further metrics; by default all that --data, the cascade and the models allow."""
    stage: str | None = None
    """The stage whose options are swept; the others keep theirs."""
    num: int = 64
    """Prompts, from the start."""
    seed: int = 0
    """Seed of the first prompt; the next have the seeds after it."""
    batch_size: int = 32
    """Pictures computed at once."""
    output: Location | None = None
    """By default sweep/ in the workdir, or here with --pretrained."""


def main(options: Options) -> None:
    cascade = options.cascade()
    output = options.output or options.default_output("sweep")
    files.check_directory(output, "--output", names=FILES)
    files.check_directory(output / "best", "--output")

    from imagen_jax import checks, compilation, grid, load_cascade
    from imagen_jax.data import transforms
    from imagen_jax.generate import plan_prompts, run_prompts
    from imagen_jax.generate.records import MAX_BATCH
    from imagen_jax.sampling.recipe import evaluations
    from imagen_jax.stage_dir.best_sampling import SAMPLING_FILE, save_best_sampling
    from imagen_jax.stage_dir.loading import read_cascade
    from imagen_jax.text import encoders

    checks.whole("--num", options.num, 1)
    checks.whole("--batch-size", options.batch_size, 1, MAX_BATCH)
    checks.seed(options.seed, name="--seed")
    prompts, claims, pictures = read_prompts(options)
    checks.seed(options.seed, len(prompts), "--seed")
    stages = read_cascade(cascade)
    if options.directory is not None:
        files.check_directory(options.directory, "--workdir", names=(SAMPLING_FILE,))
    if options.stage is not None:
        checks.choice("--stage", options.stage, [stage.config.name for stage in stages])
    given = {"claims": claims and claims[0], "reference": pictures, "low_res": True if len(stages) > 1 else None}
    given["num"] = len(prompts)
    score_name, names = choose_metrics(options, given | options.models())
    choices = options.given()
    if not choices:
        raise ValueError(
            "sampling options must be given with the values to try; got none: add one, such as --aug-level 0 0.1 0.3."
        )
    num = math.prod(map(len, choices.values()))
    checks.require(
        num <= MAX_SETTINGS,
        "settings",
        f"be at most {MAX_SETTINGS}",
        num,
        "give fewer values, or sweep in turns",
    )
    settings, seeds = sweep.combinations(choices), range(options.seed, options.seed + len(prompts))
    plans = []
    for setting in settings:
        given = {name: for_stages(value, options, stages) for name, value in setting.items()}
        plans.append(plan_prompts(stages, prompts, seeds=seeds, batch_size=options.batch_size, **given))
    height, width = plans[0].cascade.recipes[-1].size
    files.check_directory(output, "--output", needed=ROOM + len(prompts) * height * width * 3)
    compares = any("reference" in needs(name) for name in names)
    reference = reference_pictures(pictures, (height, width), "--data") if compares else None
    metrics = [build(name, options) for name in names]
    for metric in metrics:
        metric.check_claims(claims, "--data")
    stages = load_cascade(cascade)
    compilation.use_compilation_cache()
    encoder = encoders.from_config(stages[0].config.text)
    rows, scores, kept, chosen, top = [], [], None, None, None
    for setting, plan in progress.over(zip(settings, plans, strict=True), len(settings), "settings", "sweep"):
        results = run_prompts(plan, stages, encoder)
        images = [np.stack(stage_images) for stage_images in zip(*results, strict=True)]
        samples = Samples(images[-1], prompts, claims, reference, images[-2] if len(images) > 1 else None)
        measured, row = measure(metrics, samples)
        row["cost"] = sum(map(evaluations, (stage.config for stage in stages), plan.cascade.sampling))
        rows.append(setting | row)
        scores.append(measured)
        # By what decides, then by consistency: only the best pictures so far are kept.
        marks = np.stack([measured[score_name], measured.get("consistency", measured[score_name])], axis=1)
        if kept is None:
            kept, chosen, top = images[-1].copy(), np.zeros(len(prompts), int), marks
        is_better = np.array([tuple(new) > tuple(old) for new, old in zip(marks, top, strict=True)])
        kept[is_better], chosen[is_better], top[is_better] = (
            images[-1][is_better],
            len(rows) - 1,
            marks[is_better],
        )

    means, costs = np.array([row[score_name] for row in rows]), np.array([row["cost"] for row in rows])
    front = sweep.pareto(costs, means)
    for i, row in enumerate(rows):
        row["front"] = "*" if i in front else ""
    best = min(range(len(rows)), key=lambda i: (-round(means[i], 6), costs[i]))
    (output / "best").mkdir(parents=True, exist_ok=True)
    files.write(output / "sweep.md", sweep.format_table(rows) + "\n")
    files.write_json(output / "sweep.json", rows, indent=2)
    files.write(output / "pareto.png", plot(costs, means, front, score_name, [label(s) for s in settings]))
    drawn = [output / "best" / f"{i:04d}-{files.slug(prompt)}.png" for i, prompt in enumerate(prompts)]
    for file, x in zip(drawn, kept, strict=True):
        files.write(file, transforms.encode_png(grid.to_uint8(x)))
    for file in set((output / "best").glob("[0-9][0-9][0-9][0-9]-*.png")) - set(drawn):  # of an earlier sweep
        file.unlink()
    named = grid.labels(list(zip(prompts, seeds, strict=True)))
    labels = [f"{name} ({label(settings[c])})" for name, c in zip(named, chosen, strict=True)]
    files.write(output / "best.png", grid.encode_png(grid.labelled_grid(list(kept[:32]), labels[:32])))
    found = dict(zip((stage.config.name for stage in stages), plans[best].cascade.sampling, strict=True))
    about = {"score": score_name, "num": len(prompts), "seed": options.seed} | rows[best]
    file = save_best_sampling(options.directory or output, found, about)
    print(sweep.format_table(rows))
    best_of_all = np.mean([scores[c][score_name][i] for i, c in enumerate(chosen)])
    found = f"{label(settings[best])} ({score_name} {means[best]:.4g})"
    print(f"\nBest setting: {found}; best of all per prompt: {best_of_all:.4g}.")
    _LOGGER.info(f"Wrote {output}/sweep.md, sweep.json, pareto.png, best.png, best/ and {file}.")


def for_stages(value: object, options: Options, stages: tuple) -> object:
    """Return the value for all stages, or for --stage alone."""
    if options.stage is None:
        return value
    return tuple(value if stage.config.name == options.stage else None for stage in stages)


def choose_metrics(options: Options, given: Given) -> tuple[str, list[str]]:
    """Return the metric that decides, and all that are measured, of those that need no more than is given.

    Raises:
      ValueError: a metric needs what is not there, or the score has no value for a single picture.
    """
    possible = [name for name in METRICS if missing(name, given) is None]
    default = next((name for name in possible if needs(name) and is_per_picture(name)), "consistency")
    score = options.score or default
    check_needs("--score", score, given, options.data)
    if not is_per_picture(score):
        names = ", ".join(filter(is_per_picture, METRICS))
        raise ValueError(f"--score must have a value for every picture, as {names} have; got {score}.")
    for name in options.metrics:
        check_needs("--metrics", name, given, options.data)
    names = {score, *(options.metrics or possible)}
    check_models(options, names)
    return score, [name for name in METRICS if name in names]


def measure(metrics: list[Metric], samples: Samples) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Return by name the values of each picture [N], where a metric has them, and the metrics of all pictures."""
    values = {metric.name: np.asarray(metric.values(samples)) for metric in metrics if is_per_picture(metric.name)}
    row = {name: float(of_pictures.mean()) for name, of_pictures in values.items()}
    others = {m.name: m.result(m.update(m.init(), samples)) for m in metrics if m.name not in values}
    return values, row | others


def read_prompts(options: Options) -> tuple[list[str], list | None, list[np.ndarray] | None]:
    """Return (prompts, their claims, their pictures); claims and pictures are those of --data, or None."""
    if (options.data is None) == (options.prompts_file is None):
        got = "both" if options.data else "neither"
        raise ValueError(f"--data or --prompts-file must be given, and not both; got {got}.")
    if options.data is None:
        from imagen_jax.prepare import prompts

        found, report = prompts.read(options.prompts_file)
        _LOGGER.info(report)
        return found[: options.num], None, None
    from imagen_jax.data import pipeline, sources

    source = sources.open_source(options.data, options.split)
    examples = list(pipeline.examples(source, range(min(options.num, len(source)))))
    if not examples:
        raise ValueError(f"--split must hold captions; {options.split} of {options.data} is empty.")
    captions, claims, pictures = ([example[key] for example in examples] for key in ("caption", "claims", "image"))
    return captions, claims, pictures


def label(setting: dict) -> str:
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in setting.items()
    )


def plot(costs: np.ndarray, means: np.ndarray, front: np.ndarray, score: str, labels: list[str]) -> bytes:
    """Return a PNG of score against cost."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    axes.scatter(costs, means, s=18, color="tab:gray", label="settings")
    axes.plot(costs[front], means[front], "o-", color="tab:red", label="Pareto front")
    for i in front:
        axes.annotate(labels[i], (costs[i], means[i]), fontsize=7, xytext=(4, -9), textcoords="offset points")
    axes.set(xlabel="images through the networks for one result", ylabel=f"mean {score}", xscale="log")
    axes.set_xticks(np.unique(costs), [f"{cost:g}" for cost in np.unique(costs)])
    axes.minorticks_off()
    axes.legend()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    pyplot.close(figure)
    return buffer.getvalue()


def parse(args: list[str]) -> Options:
    return parsing.parse(Options, __doc__, args)
