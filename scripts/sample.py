"""Samples pictures from a trained cascade.

  python scripts/sample.py --workdir runs/quickstart --prompts "a small red star" "a large blue circle"
  python scripts/sample.py --workdir runs/quickstart --prompts-file prompts.txt --num 4 --guidance-scale 8 2

Every sampling option takes one value for all stages or one for each. Each picture is a PNG that holds
its prompt, seed and settings; grid.png shows them all. A picture depends on its prompt and seed alone.
"""

import dataclasses
import json
import re
from pathlib import Path
from typing import Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from imagen_jax import cli
from imagen_jax.config import SamplingConfig, to_dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    workdir: Path
    """Directory of the cascade, as scripts/train.py wrote it."""
    prompts: tuple[str, ...] = ()
    """The prompts themselves."""
    prompts_file: Path | None = None
    """A text file with one prompt per line."""
    output: Path | None = None
    """Directory for the pictures; by default samples/ in the workdir. Existing pictures stay."""
    num: int = 1
    """Pictures for each prompt, of the seeds seed, seed + 1, ..."""
    seed: int = 0
    batch_size: int = 16
    """Pictures computed at once."""
    sampler: tuple[Literal["ddpm", "ddim", "dpmpp_2m"], ...] = ()
    steps: tuple[int, ...] = ()
    guidance_scale: tuple[float, ...] = ()
    threshold: tuple[Literal["dynamic", "static", "none"], ...] = ()
    percentile: tuple[float, ...] = ()
    cap: tuple[float, ...] = ()
    aug_level: tuple[float, ...] = ()
    ddpm_gamma: tuple[float, ...] = ()

    def sampling(self) -> dict[str, object]:
        """The sampling options that were given, one value or one per stage."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(SamplingConfig)}
        return {name: value[0] if len(value) == 1 else value for name, value in given.items() if value}


def main(options: Options) -> None:
    prompts = read_prompts(options)
    if options.num < 1 or options.batch_size < 1:
        raise ValueError(
            f"--num and --batch-size must be positive; got {options.num} and {options.batch_size}."
        )
    output = options.output or options.workdir / "samples"

    from imagen_jax import TextEncoder, load_cascade
    from imagen_jax.cascade import sampling_by_stage
    from imagen_jax.evaluation.grid import labelled_grid, to_uint8
    from imagen_jax.generate import generate

    stages = load_cascade(options.workdir)
    encoder = TextEncoder.from_config(stages[0].config.text)
    jobs = [(prompt, options.seed + i) for prompt in prompts for i in range(options.num)]
    pictures = generate(
        stages, encoder, [p for p, _ in jobs], seeds=[s for _, s in jobs], batch_size=options.batch_size,
        **options.sampling(),
    )  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    settings = json.dumps([to_dict(used) for used in sampling_by_stage(stages, options.sampling())])
    finals = []
    for (prompt, seed), images in tqdm(zip(jobs, pictures, strict=True), total=len(jobs), unit="picture"):
        finals.append(images[-1])
        information = PngInfo()
        for key, value in {"prompt": prompt, "seed": str(seed), "sampling": settings}.items():
            information.add_itxt(key, value)
        image = Image.fromarray(to_uint8(images[-1]))
        image.save(free(output, f"{slug(prompt)}-seed{seed}"), pnginfo=information)
    grid = free(output, "grid")
    labelled_grid(finals, [prompt for prompt, _ in jobs]).save(grid)
    print(f"Wrote {len(finals)} pictures of {finals[0].shape[1]}x{finals[0].shape[0]} and {grid}.")


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
