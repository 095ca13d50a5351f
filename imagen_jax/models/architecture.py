"""Checks of what the configurations of U-Nets have in common."""

from typing import Any, get_args

from imagen_jax import checks
from imagen_jax.checks import require
from imagen_jax.models.patches import PATCH_SIZES, PatchTransform

MAX_CHANNELS = 2**16
MAX_BLOCKS = 64  # at one resolution: more take minutes to trace


def check_levels(config: Any, flags: tuple[str, ...], prefix: str) -> None:
    """Check the fields that U-Nets have in common.

    Args:
      config: has channels and num_res_blocks, tuples with one entry for each resolution, embedding, dropout,
        patch_size and patch_transform.
      flags: names of its fields that are tuples of one bool for each resolution.
      prefix: of the fields' names in messages.

    Raises:
      ValueError: a field is of the wrong type or out of range, or the tuples are not of one length.
    """
    check_tuples(config, flags, prefix)
    # The noise level is coded by sines and cosines in a quarter of the width.
    checks.whole(f"{prefix}embedding", config.embedding, 8, MAX_CHANNELS)
    require(config.embedding % 4 == 0, f"{prefix}embedding", "be a multiple of 4", config.embedding)
    checks.number(f"{prefix}dropout", config.dropout, "[0, 1)")
    is_known = checks.is_whole(config.patch_size) and config.patch_size in PATCH_SIZES
    require(is_known, f"{prefix}patch_size", f"be one of {', '.join(map(str, PATCH_SIZES))}", config.patch_size)
    checks.choice(f"{prefix}patch_transform", config.patch_transform, get_args(PatchTransform))


def check_tuples(config: Any, flags: tuple[str, ...], prefix: str) -> None:
    """Check channels, num_res_blocks and `flags` of `check_levels`.

    Raises:
      ValueError: as `check_levels` does.
    """
    tuples = {name: getattr(config, name) for name in ("channels", "num_res_blocks", *flags)}
    for name, value in tuples.items():
        require(isinstance(value, tuple), f"{prefix}{name}", "be a tuple with one entry for each level", value)
    levels = len(config.channels)
    require(levels > 0, f"{prefix}channels", "have at least one level", config.channels)
    for name, value in tuples.items():
        rule = f"have one entry for each of the {levels} levels of {prefix}channels"
        require(len(value) == levels, f"{prefix}{name}", rule, value)
    for i in range(levels):
        checks.whole(f"{prefix}channels[{i}]", config.channels[i], 1, MAX_CHANNELS)
        checks.whole(f"{prefix}num_res_blocks[{i}]", config.num_res_blocks[i], 1, MAX_BLOCKS)
        for name in flags:
            is_bool = isinstance(tuples[name][i], bool)
            require(is_bool, f"{prefix}{name}[{i}]", "be True or False", tuples[name][i])
