"""Sample pictures from a trained cascade.

  imagen-jax sample --pretrained NAME --prompts "a small red star"
  imagen-jax sample --workdir runs/quickstart --prompts "a small red star" "a large blue circle"
  imagen-jax sample --workdir runs/quickstart --prompts-file prompts.txt --num 4 --guidance-scale 8 2
  imagen-jax sample --workdir runs/quickstart --prompts "a red star" --image photo.png --strength 0.6
  imagen-jax sample --workdir runs/quickstart --prompts "a red star" --image photo.png --mask mask.png
  imagen-jax sample --workdir runs/quickstart --prompts "a red star" --start sr64 --low-res small.png
  imagen-jax sample --workdir runs/quickstart --prompts "a red star" --adapter adapters/ink adapters/night:0.5
  imagen-jax sample --from-png runs/quickstart/samples/a-small-red-star-seed0.png

Every sampling option takes one value for all stages that run or one for each (None: the stage's own). Each picture is
a PNG that records all it was made from, so that --from-png makes it again; grid.png shows them all. A picture depends
on its prompt and seed alone, whatever else is asked for.
"""

import dataclasses
import itertools
import logging
from pathlib import Path
from typing import Literal

from imagen_jax import progress
from imagen_jax.cli import parsing
from imagen_jax.cli.options import asks_for_help
from imagen_jax.cli.sampling_options import AdaptedOptions
from imagen_jax.storage import files
from imagen_jax.storage.locations import Location

_LOGGER = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(AdaptedOptions):
    prompts: tuple[str, ...] = ()
    """The prompts themselves; or give --prompts-file."""
    prompts_file: Path | None = None
    """A text file with one prompt per line; lines that begin with # are comments."""
    negative: str | None = None
    """A prompt to steer away from."""
    output: Location | None = None
    """Directory for the pictures; by default samples/ in the workdir, or here if there is no single one. Existing
    pictures stay."""
    num: int | None = None
    """Pictures for each prompt, of the seeds seed, seed + 1, ...; by default 1."""
    seed: int | None = None
    """First seed, from 0 to 4294967295; by default 0."""
    batch_size: int | None = None
    """Pictures computed at once; by default 16."""
    best: bool = False
    """Start from the options that imagen-jax sweep found best for --workdir, instead of the preset's."""
    start: str | None = None
    """The first stage to run, by name; a super-resolution stage starts from --low-res."""
    stop: str | None = None
    """The last stage to run, by name."""
    size: tuple[int, int] | None = None
    """Height and width of the result in pixels, if not square."""
    low_res: Path | None = None
    """A picture to enlarge; its middle is fitted to what the stage takes."""
    image: Path | None = None
    """A picture to start from (--strength below 1) or to paint in (--mask); its middle is fitted to the result."""
    mask: Path | None = None
    """A picture of the same size as --image: white = paint here, black = keep; docs/sampling.md has other kinds."""
    outpaint: tuple[int, int, int, int] | None = None
    """Shares in percent of the result to paint around --image: top, bottom, left, right."""
    fsdp: int | None = None
    """Devices that share each copy of the parameters; by default 1."""
    text_encoder: str | None = None
    """Where the text encoder is that captions were encoded by in training, if it is not found: its directory, that of a
    pipeline of DeepFloyd IF that has it, or a name on the Hugging Face hub."""
    text_dtype: Literal["float32", "bfloat16", "int8"] | None = None
    """Type of the text encoder's weights, int8 for small cards; by default that of training."""
    one_at_a_time: bool = False
    """For small cards: load the text encoder and the stages one after another, each for all pictures, and free it. The
    pictures stay the same."""
    from_png: Path | None = None
    """A picture that this script wrote, to make again to the bit. Beside it only --output, --batch-size,
    --one-at-a-time and the new places of what has been moved: --workdir or --pretrained, --text-encoder, --adapter,
    --image, --mask, --low-res."""


# What may be given beside --from-png.
MOVED = ("workdir", "pretrained", "text_encoder", "adapter", "image", "mask", "low_res")
BESIDE = ("from_png", "output", "batch_size", "one_at_a_time", *MOVED)


def main(options: Options) -> None:
    if options.from_png is not None:
        repeat(options)
    else:
        sample(options)


def sample(options: Options) -> None:
    """Sample what the options ask for and write it with a grid."""
    cascade = options.cascade()
    prompts = read_prompts(options)
    output = options.output or options.default_output("samples")
    files.check_directory(output, "--output")

    from imagen_jax import compilation, grid
    from imagen_jax.generate import request
    from imagen_jax.generate.records import encode_png

    jobs = request.jobs(prompts, options.seed or 0, 1 if options.num is None else options.num)
    same = ("best", "start", "stop", "size", "negative", "outpaint", "batch_size", "fsdp")
    same += ("text_encoder", "text_dtype", "one_at_a_time")
    asked = {key: value for key in same if (value := getattr(options, key)) is not None}
    prepared = request.prepare(
        request.Request(
            workdir=cascade,
            jobs=jobs,
            options=options.sampling(),
            adapters=options.adapters(),
            inputs=inputs(options),
            **asked,
        )
    )
    files.check_directory(output, "--output", needed=len(jobs) * 3 * prepared.size[0] * prepared.size[1])
    if prepared.report:
        _LOGGER.info(prepared.report)
    compilation.use_compilation_cache()
    shown = []
    for record, x in progress.over(request.draw(prepared), len(jobs), "pictures", "sampling"):
        output.mkdir(parents=True, exist_ok=True)  # now that all options have proved right
        files.write_new(output / name(record), encode_png(grid.to_uint8(x), record))
        if len(shown) < grid.MAX_PICTURES:
            shown.append(grid.thumbnail(x))
    sheet = grid.labelled_grid(shown, grid.labels(jobs[: len(shown)]))
    written = files.write_new(output / "grid.png", grid.encode_png(sheet))
    height, width = prepared.size
    _LOGGER.info(f"Wrote {len(jobs)} pictures of {width}x{height} to {output}, and {written}{grid.cut(len(jobs))}.")


def repeat(options: Options) -> None:
    """Make a picture again from the record in its PNG."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    others = [
        key for key, default in defaults.items() if key not in BESIDE and getattr(options, key) != default
    ]
    if others:
        names = ", ".join(f"--{key.replace('_', '-')}" for key in others)
        raise ValueError(
            f"--from-png must stand without options that the record in the picture has; got {names}: leave them out, "
            "or leave --from-png out and give all options anew."
        )
    if options.output is not None:
        files.check_directory(options.output, "--output")

    from imagen_jax import compilation
    from imagen_jax.generate import records, repeating, request
    from imagen_jax.grid import to_uint8

    record, before = records.read(options.from_png)
    cascade = options.cascade() if options.workdir or options.pretrained else None
    moved = {"inputs": inputs(options), "adapters": options.adapters(), "text_encoder": options.text_encoder}
    asked = repeating.repeating(record, workdir=cascade, batch_size=options.batch_size, **moved)
    prepared = request.prepare(dataclasses.replace(asked, one_at_a_time=options.one_at_a_time))
    output = options.output or (asked.workdir / "samples" if isinstance(asked.workdir, Path) else Path("samples"))
    files.check_directory(output, "--output", needed=before.size)
    compilation.use_compilation_cache()
    row = record.row if asked.batch_size == record.batch_size else 0
    own, x = next(itertools.islice(request.draw(prepared), row, None))
    pixels = to_uint8(x)
    output.mkdir(parents=True, exist_ok=True)
    written = files.write_new(output / name(own), records.encode_png(pixels, own))
    _LOGGER.info(f"Wrote {written}: {records.compare(record, before, own, pixels)}.")


def inputs(options: Options) -> dict[str, Path]:
    """Return the files to start from or to paint in, by name."""
    return {key: path for key in ("image", "mask", "low_res") if (path := getattr(options, key)) is not None}


def read_prompts(options: Options) -> list[str]:
    """Return the prompts of --prompts or --prompts-file."""
    if bool(options.prompts) == (options.prompts_file is not None):
        got = "both" if options.prompts else "neither"
        raise ValueError(f"--prompts or --prompts-file must be given, and not both; got {got}.")
    if options.prompts_file is None:
        return list(options.prompts)
    from imagen_jax.prepare import prompts

    found, report = prompts.read(options.prompts_file)
    _LOGGER.info(report)
    return found


def name(record) -> str:
    """Return the file name of a picture."""
    return f"{files.slug(record.prompt)}-seed{record.seed}.png"


def parse(args: list[str]) -> Options:
    return parsing.parse(Options, __doc__ + known_cascades(args), args)


def known_cascades(args: list[str]) -> str:
    """Return the part of --help that names the pretrained cascades and the captions that each knows."""
    if not asks_for_help(args):
        return ""
    from imagen_jax.stage_dir import pretrained

    return f"\n\nPretrained cascades, for --pretrained:\n\n{pretrained.describe() or '  none is installed'}"
