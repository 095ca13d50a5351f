"""Labels and cells of grids."""


import numpy as np
import pytest

from imagen_jax import grid
from imagen_jax.grid import labelled_grid, to_uint8


@pytest.mark.parametrize(
    ("jobs", "labels"),
    [
        ([("a", 0), ("b", 0)], ["a", "b"]),
        ([("a", 3), ("a", 4), ("b", 3)], ["a (seed 3)", "a (seed 4)", "b"]),
        ([("a", 0), ("a", 0)], ["a (seed 0)"] * 2),
        ([("", 7)], [""]),
        ([("x" * 1000, 1), ("x" * 1000, 2)], [f"{'x' * 200}... (seed {i})" for i in (1, 2)]),
    ],
)
def test_labels_tell_pictures_of_one_prompt_apart(jobs, labels):
    assert grid.labels(jobs) == labels


@pytest.mark.parametrize("shape", [(8, 8), (16, 4), (4, 16), (300, 200), (1, 64)])
def test_pictures_of_any_shape_do_not_cover_their_labels(shape):
    x = np.full((*shape, 3), -1, np.float32)
    sheet = np.asarray(grid.labelled_grid([x, x], ["", "a"], columns=2, cell=64))
    tall = max(1, 64 * shape[0] // shape[1])
    assert (sheet[6 : 6 + tall, 6:70] == 0).all()
    below = sheet[6 + tall + 1 :, :]
    assert (below[:, :70] == 255).all() and (below[:, 70:] < 255).any()  # the second has a label


def test_thumbnails_are_the_cells_of_the_grid():
    x = np.random.default_rng(0).uniform(-1, 1, (5, 7, 3))
    cells = [grid.thumbnail(x, 32), x]
    sheet = np.asarray(grid.labelled_grid(cells, ["", ""], columns=2, cell=32))
    np.testing.assert_array_equal(sheet[6:28, 6:38], sheet[6:28, 44:76])
    assert grid.cut(256) == "" and grid.cut(257) == " with the first 256 of them"


def test_grid_holds_every_picture():
    pictures = [np.full((4, 4, 3), value, np.float32) for value in (-1.0, 0.0, 1.0)]
    sheet = np.asarray(
        labelled_grid(pictures, ["black", "grey", "a white picture with a long label"], columns=2, cell=32)
    )
    assert to_uint8(pictures[1]).max() == 128 and to_uint8(np.array([2.0, -2.0])).tolist() == [255, 0]
    assert sheet.shape[1] == 2 * 38 + 6
    for left, top, value in ((6, 6, 0), (44, 6, 128)):
        assert (sheet[top : top + 30, left : left + 30] == value).all()
