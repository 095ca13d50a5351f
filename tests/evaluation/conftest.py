"""Four colors in two styles as a data set of icons, and a recogniser that was trained on them."""

import json

import numpy as np
import pytest

from imagen_jax.data import transforms
from imagen_jax.evaluation import recogniser_training
from imagen_jax.prepare.records import write_records

COLORS = {"red": (230, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 230), "yellow": (240, 210, 40)}
STYLES = ("disc", "stripes")
UNSEEN = ("yellow", "disc")
SIDE = 16


def draw(color, style, place):
    """Return a picture [16, 16, 3] uint8: a disc or stripes of a color on white, off the middle by `place`."""
    y, x = np.indices((SIDE, SIDE)) - (SIDE - 1) / 2 - np.reshape(place, (2, 1, 1))
    inside = (x**2 + y**2 < 36) & ((style == "disc") | (y % 4 < 2))
    return np.where(inside[..., None], COLORS[color], 255).astype(np.uint8)


@pytest.fixture(scope="session")
def icons(tmp_path_factory):
    """The directory of a data set. Training shows no yellow disc; unseen_pairs has nothing else."""
    directory = tmp_path_factory.mktemp("icons") / "data"

    def records(pairs, places):
        for color, style in pairs:
            for place in places:
                image = transforms.encode_png(draw(color, style, place))
                claims = json.dumps({"subject": color, "name": color, "style": style})
                for caption in (color, f"{color}, {style}"):
                    yield {"image": image, "caption": caption, "claims": claims}

    pairs = [(color, style) for color in COLORS for style in STYLES if (color, style) != UNSEEN]
    corners = [(-1, -1), (-1, 1), (1, -1), (1, 1)]
    splits = {
        "train": records(pairs, corners), "validation": records(pairs, [(0, 0)]),
        "unseen_pairs": records([UNSEEN], corners),
    }  # fmt: skip
    write_records({name: list(rows) for name, rows in splits.items()}, directory, name="icons", description="Icons.")
    return directory


@pytest.fixture(scope="session")
def trained(icons):
    """A recogniser for pictures of 16x16 pixels."""
    return recogniser_training.train(recogniser_training.read_pictures(icons, "train"), size=SIDE, epochs=24, seed=0)
