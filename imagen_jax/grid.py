"""Labelled grids of pictures."""

import collections
import io
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

MAX_PICTURES = 256  # that scripts show in one grid
_MAX_LABEL = 200  # characters of a prompt below its picture


def to_uint8(x: np.ndarray) -> np.ndarray:
    """[-1, 1] float -> 0..255 uint8."""
    return np.clip(np.round((np.asarray(x) + 1) * 127.5), 0, 255).astype(np.uint8)


def encode_png(image: Image.Image) -> bytes:
    """A grid as the bytes of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def thumbnail(x: np.ndarray, cell: int = 128) -> Image.Image:
    """[H, W, 3] in [-1, 1] as a cell of a grid, `cell` pixels wide; enlarged or reduced without smoothing."""
    picture = Image.fromarray(to_uint8(x))
    height = max(1, cell * picture.height // picture.width)
    return picture.resize((cell, height), Image.Resampling.NEAREST)


def labels(jobs: Sequence[tuple[str, int]]) -> list[str]:
    """A label for each (prompt, seed): the prompt, and the seed where the prompt comes several times."""
    counts = collections.Counter(prompt for prompt, _ in jobs)
    return [
        f"{_shortened(prompt)} (seed {seed})" if counts[prompt] > 1 else _shortened(prompt)
        for prompt, seed in jobs
    ]


def cut(num: int) -> str:
    """What to add to the name of a grid of `num` pictures: "" if it shows them all."""
    return f" with the first {MAX_PICTURES} of them" if num > MAX_PICTURES else ""


def _shortened(prompt: str) -> str:
    return prompt if len(prompt) <= _MAX_LABEL else f"{prompt[:_MAX_LABEL]}..."


def labelled_grid(
    images: Sequence[np.ndarray | Image.Image], labels: Sequence[str], *, columns: int = 8, cell: int = 128
) -> Image.Image:
    """One picture of all `images`, the label of each below it.

    Args:
      images: [H, W, 3] in [-1, 1] each, of any sizes, or thumbnails of width `cell`.
      labels: one per image, wrapped to its width.
      columns: pictures in a row.
      cell: width of a picture in pixels.
    """
    font = ImageFont.load_default(max(9, cell // 12))
    line = sum(font.getmetrics())
    wrapped = [textwrap.wrap(label, max(8, int(cell / font.getlength("n") * 1.05))) for label in labels]
    pictures = [x if isinstance(x, Image.Image) else thumbnail(x, cell) for x in images]
    tall = max(picture.height for picture in pictures)
    caption = line * max(map(len, wrapped)) + 6
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    gap = 6
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (tall + caption + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (picture, lines) in enumerate(zip(pictures, wrapped, strict=True)):
        left = gap + i % columns * (cell + gap)
        top = gap + i // columns * (tall + caption + gap)
        sheet.paste(picture, (left, top))
        draw.rectangle((left - 1, top - 1, left + cell, top + picture.height), outline=(190, 190, 190))
        draw.multiline_text((left, top + tall + 2), "\n".join(lines), fill="black", font=font, spacing=0)
    return sheet
