"""Samples pictures from a trained cascade.

  python scripts/sample.py --workdir runs/quickstart --prompts "a small red star" "a large blue circle"
  python scripts/sample.py --workdir runs/quickstart --prompts-file prompts.txt --num 4 --guidance-scale 8 2
  python scripts/sample.py --workdir runs/quickstart --prompts "a red star" --image photo.png --strength 0.6
  python scripts/sample.py --workdir runs/quickstart --prompts "a red star" --image photo.png --mask mask.png
  python scripts/sample.py --workdir runs/quickstart --prompts "a red star" --start sr64 --low-res small.png

Every sampling option takes one value for all stages that run or one for each (None: the stage's own). Each picture is
a PNG that holds its prompt, seed and settings; grid.png shows them all. A picture depends on its prompt and seed alone.
"""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from imagen_jax import cli, progress
from imagen_jax.config import to_dict
from imagen_jax.locations import Location


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(cli.SamplingOptions):
    workdir: Location
    """Directory of the cascade, as scripts/train.py wrote it."""
    prompts: tuple[str, ...] = ()
    """The prompts themselves."""
    prompts_file: Path | None = None
    """A text file with one prompt per line."""
    negative: str | None = None
    """A prompt to steer away from."""
    output: Location | None = None
    """Directory for the pictures; by default samples/ in the workdir. Existing pictures stay."""
    num: int = 1
    """Pictures for each prompt, of the seeds seed, seed + 1, ..."""
    seed: int = 0
    """Seed of the first picture of each prompt."""
    batch_size: int = 16
    """Pictures computed at once."""
    best: bool = False
    """Start from the options that scripts/sweep.py found best, instead of the preset's."""
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
    fsdp: int = 1
    """Devices that share each copy of the parameters."""


def main(options: Options) -> None:
    prompts = read_prompts(options)
    if options.num < 1 or options.batch_size < 1:
        raise ValueError(
            f"--num and --batch-size must be positive; got {options.num} and {options.batch_size}."
        )
    output = options.output or options.workdir / "samples"

    from imagen_jax import TextEncoder, load_cascade, parallel
    from imagen_jax.cascade import between, sampling_by_stage
    from imagen_jax.evaluation.grid import labelled_grid, to_uint8
    from imagen_jax.generate import generate

    stages = load_cascade(options.workdir, best=options.best)
    ends = {name: getattr(options, name) for name in ("start", "stop") if getattr(options, name)}
    chosen = between(stages, ends)
    settings = sampling_by_stage(chosen, options.sampling())
    jobs = [(prompt, options.seed + i) for prompt in prompts for i in range(options.num)]
    images = {
        name: np.repeat(x[None], len(jobs), axis=0) for name, x in pictures_for(options, chosen).items()
    }
    parallel.use_compilation_cache()
    encoder = TextEncoder.from_config(stages[0].config.text)
    pictures = generate(
        stages, encoder, [p for p, _ in jobs], seeds=[s for _, s in jobs], batch_size=options.batch_size,
        fsdp=options.fsdp, negative=options.negative, images=images, size=options.size, **ends, **options.sampling(),
    )  # fmt: skip
    recorded = json.dumps({s.config.name: to_dict(used) for s, used in zip(chosen, settings, strict=True)})
    finals = []
    done = progress.over(zip(jobs, pictures, strict=True), len(jobs), "pictures", "sampling")
    for (prompt, seed), by_stage in done:
        output.mkdir(parents=True, exist_ok=True)  # now that all options have proved right
        finals.append(by_stage[-1])
        information = PngInfo()
        for key, value in {"prompt": prompt, "seed": str(seed), "sampling": recorded}.items():
            information.add_itxt(key, value)
        image = Image.fromarray(to_uint8(by_stage[-1]))
        image.save(free(output, f"{slug(prompt)}-seed{seed}"), pnginfo=information)
    grid = free(output, "grid")
    labelled_grid(finals, [prompt for prompt, _ in jobs]).save(grid)
    print(f"Wrote {len(finals)} pictures of {finals[0].shape[1]}x{finals[0].shape[0]} and {grid}.")


def pictures_for(options: Options, stages: tuple) -> dict[str, np.ndarray]:
    """The pictures that were given, fitted to the sizes of the stages: [H, W, C] each."""
    from imagen_jax.cascade import sizes_by_stage
    from imagen_jax.data import masks, transforms

    sizes = sizes_by_stage(tuple(stage.config for stage in stages), options.size)
    fitted = {}
    if options.low_res is not None:
        config = stages[0].config
        if not config.is_super_resolution:
            raise ValueError(f"--low-res needs --start with a super-resolution stage; {config.name} is none.")
        size = tuple(side * config.low_res_size // config.image_size for side in sizes[0])
        fitted["low_res"] = transforms.fit(read("--low-res", options.low_res), size)
    if (options.mask is not None or options.outpaint is not None) and options.image is None:
        raise ValueError("--mask and --outpaint need --image, the picture to paint in.")
    if options.mask is not None and options.outpaint is not None:
        raise ValueError("Give either --mask or --outpaint.")
    if options.image is not None:
        image = read("--image", options.image)
        if options.mask is not None:
            fitted["mask"], report = masks.load("--mask", options.mask, image.shape[:2], sizes[-1])
            print(report)
        fitted["image"] = transforms.fit(image, sizes[-1])
        if options.outpaint is not None:
            fitted["image"], fitted["mask"] = outpainted(image, options.outpaint, sizes[-1])
    return fitted


def outpainted(
    image: np.ndarray, shares: tuple[int, ...], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(picture of `size` with the image inside its borders, mask of the borders)."""
    from imagen_jax.data import transforms
    from imagen_jax.diffusion import editing

    top, bottom, left, right = (
        round(share / 100 * side) for share, side in zip(shares, (size[0],) * 2 + (size[1],) * 2, strict=True)
    )
    inner = (size[0] - top - bottom, size[1] - left - right)
    if min(shares) < 0 or min(inner) < 1:
        raise ValueError(f"--outpaint must leave room for the picture; got {shares} percent.")
    inside = transforms.fit(image, inner)[None]
    larger, mask = editing.outpainting(inside, top=top, bottom=bottom, left=left, right=right)
    return np.asarray(larger[0]), np.asarray(mask[0])


def read(option: str, path: Path) -> np.ndarray:
    from imagen_jax.data import transforms

    return transforms.decode(transforms.read_file(option, path), f"{option} {path}")


def read_prompts(options: Options) -> list[str]:
    if bool(options.prompts) == (options.prompts_file is not None):
        raise ValueError('Give either --prompts "..." or --prompts-file FILE.')
    if options.prompts_file is None:
        return list(options.prompts)
    lines = options.prompts_file.read_text(encoding="utf-8").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"--prompts-file must hold one prompt per line; {options.prompts_file} is empty.")
    return prompts


def slug(prompt: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:60] or "empty"


def free(directory: Path, stem: str) -> Path:
    """The first of stem.png, stem-2.png, ... that is not there yet."""
    candidates = (directory / f"{stem}{'' if i == 1 else f'-{i}'}.png" for i in range(1, 10**6))
    return next(path for path in candidates if not path.exists())


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Options, __doc__))
