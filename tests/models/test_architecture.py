"""Fields that the configurations of U-Nets have in common."""

from types import SimpleNamespace

import pytest

from imagen_jax.models.architecture import check_levels

RIGHT = {
    "channels": (8, 16),
    "num_res_blocks": (1, 2),
    "attention": (False, True),
    "embedding": 32,
    "dropout": 0.1,
    "patch_size": 2,
    "patch_transform": "haar",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"channels": [8, 16]}, "n.channels must be a tuple with one entry for each level"),
        ({"channels": ()}, "n.channels must have at least one level"),
        ({"num_res_blocks": (1,)}, "n.num_res_blocks must have one entry for each of the 2 levels of n.channels"),
        ({"channels": (8, 0)}, r"n.channels\[1\] must be at least 1; got 0"),
        ({"num_res_blocks": (1, 65)}, r"n.num_res_blocks\[1\] must be at most 64; got 65"),
        ({"attention": (False, 1)}, r"n.attention\[1\] must be True or False; got 1"),
        ({"embedding": 30}, "n.embedding must be a multiple of 4; got 30"),
        ({"dropout": 1.0}, r"n.dropout must be in \[0, 1\); got 1.0"),
        ({"patch_size": 3}, r"n.patch_size must be "),
    ],
)
def test_fields(changes, message):
    config = SimpleNamespace(**RIGHT | changes)
    if message is None:
        check_levels(config, ("attention",), "n.")
        return
    with pytest.raises(ValueError, match=f"^{message}"):
        check_levels(config, ("attention",), "n.")
