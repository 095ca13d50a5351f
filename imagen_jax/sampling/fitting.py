"""Pictures from a user's files, fitted to the stages of a cascade."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import StageConfig
from imagen_jax.data import masks, transforms
from imagen_jax.diffusion import editing
from imagen_jax.sampling.plan import sizes_by_stage


def fit_inputs(
    configs: Sequence[StageConfig],
    inputs: Mapping[str, Path],
    *,
    size: tuple[int, int] | None = None,
    outpaint: tuple[int, int, int, int] | None = None,
) -> tuple[dict[str, np.ndarray], str]:
    """Reads the pictures that a cascade starts from or paints in, and fits their middle to its sizes.

    Args:
      configs: of the stages that run, in their order.
      inputs: the files by "image", "mask" and "low_res"; see `sample_cascade`.
      size: (height, width) of the result in pixels; None: that of the last stage.
      outpaint: shares in percent of the result to paint around the image: top, bottom, left, right.

    Returns:
      (arguments of `sample_cascade`, each [H, W, C] without the batch; a line about the mask or "").

    Raises:
      ValueError: one line: they do not go together, or one cannot be read.
    """
    sizes = sizes_by_stage(tuple(configs), size)
    fitted, report = {}, ""
    if "low_res" in inputs:
        config = configs[0]
        if not config.is_super_resolution:
            raise ValueError(
                f"--low-res must come with --start at a super-resolution stage; got {config.name}, which is none."
            )
        small = tuple(side * config.low_res_size // config.image_size for side in sizes[0])
        fitted["low_res"] = transforms.fit(_read("--low-res", inputs["low_res"]), small)
    if ("mask" in inputs or outpaint is not None) and "image" not in inputs:
        raise ValueError("--mask and --outpaint must come with --image, the picture to paint in; got none.")
    if "mask" in inputs and outpaint is not None:
        raise ValueError("--mask or --outpaint must be given alone; got both.")
    if "image" in inputs:
        image = _read("--image", inputs["image"])
        if "mask" in inputs:
            fitted["mask"], report = masks.load("--mask", inputs["mask"], image.shape[:2], sizes[-1])
        if outpaint is None:
            fitted["image"] = transforms.fit(image, sizes[-1])
        else:
            fitted["image"], fitted["mask"] = _outpainted(image, outpaint, sizes[-1])
    return fitted, report


def _outpainted(
    image: np.ndarray, shares: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """(picture of `size` with the image inside its borders, mask of the borders)."""
    for share in shares:
        checks.whole("--outpaint", share, 0, 99)
    top, bottom, left, right = (
        round(share / 100 * side) for share, side in zip(shares, (size[0],) * 2 + (size[1],) * 2, strict=True)
    )
    inner, got = (size[0] - top - bottom, size[1] - left - right), Verbatim(f"{shares} percent")
    require(min(inner) >= 1, "--outpaint", "leave room for the picture", got)
    require(inner != tuple(size), "--outpaint", "leave something to paint", got, "use larger shares")
    inside = transforms.fit(image, inner)[None]
    larger, mask = editing.outpainting(inside, top=top, bottom=bottom, left=left, right=right)
    return np.asarray(larger[0]), np.asarray(mask[0])


def _read(option: str, path: Path) -> np.ndarray:
    return transforms.decode(transforms.read_file(option, path), f"{option} {path}")
