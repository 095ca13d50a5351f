"""Labelled grids of pictures."""

import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def to_uint8(x: np.ndarray) -> np.ndarray:
    """[-1, 1] float -> 0..255 uint8."""
    return np.clip(np.round((np.asarray(x) + 1) * 127.5), 0, 255).astype(np.uint8)


def labelled_grid(
    images: Sequence[np.ndarray], labels: Sequence[str], *, columns: int = 8, cell: int = 128
) -> Image.Image:
    """One picture of all `images` ([H, W, 3] in [-1, 1] each), the label of each below it.

    Args:
      images: of any sizes; shown `cell` pixels wide, enlarged without smoothing.
      labels: one per image, wrapped to its width.
      columns: pictures in a row.
      cell: width of a picture in pixels.
    """
    font = ImageFont.load_default(max(9, cell // 12))
    line = sum(font.getmetrics())
    wrapped = [textwrap.wrap(label, max(8, int(cell / font.getlength("n") * 1.05))) for label in labels]
    caption = line * max(map(len, wrapped)) + 6
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    gap = 6
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, rows * (cell + caption + gap) + gap), "white")
    draw = ImageDraw.Draw(sheet)
    for i, (x, lines) in enumerate(zip(images, wrapped, strict=True)):
        left = gap + i % columns * (cell + gap)
        top = gap + i // columns * (cell + caption + gap)
        picture = Image.fromarray(to_uint8(x))
        sheet.paste(
            picture.resize((cell, cell * picture.height // picture.width), Image.Resampling.NEAREST),
            (left, top),
        )
        draw.rectangle((left - 1, top - 1, left + cell, top + cell), outline=(190, 190, 190))
        draw.multiline_text((left, top + cell + 2), "\n".join(lines), fill="black", font=font, spacing=0)
    return sheet
