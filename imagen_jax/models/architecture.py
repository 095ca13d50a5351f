"""The options that a network can be built with, checked for its configuration and when it is called."""

from typing import Any

from imagen_jax import checks
from imagen_jax.checks import require

MAX_CHANNELS = 2**16
MAX_BLOCKS = 64  # at one resolution: more take minutes to trace


def check_unet(
    *,
    channels: Any,
    num_res_blocks: Any,
    attention: Any,
    embedding: Any,
    head_dim: Any,
    dropout: Any,
    prefix: str = "",
) -> None:
    """Raises a ValueError for whatever `UNet` cannot be built with; names in it begin with `prefix`."""
    _check_levels(channels, num_res_blocks, {"attention": attention}, prefix)
    _check_common(embedding, dropout, prefix)
    checks.whole(f"{prefix}head_dim", head_dim, 1, MAX_CHANNELS)
    wrong = [c for c, is_on in zip(channels, attention, strict=True) if is_on and c % head_dim]
    require(not wrong, f"{prefix}channels", f"be multiples of head_dim {head_dim} where attention is on", wrong)


def check_efficient_unet(
    *,
    stem_channels: Any,
    channels: Any,
    num_res_blocks: Any,
    self_attention: Any,
    cross_attention: Any,
    embedding: Any,
    num_heads: Any,
    dropout: Any,
    prefix: str = "",
) -> None:
    """Raises a ValueError for whatever `EfficientUNet` cannot be built with; names in it begin with `prefix`."""
    checks.whole(f"{prefix}stem_channels", stem_channels, 1, MAX_CHANNELS)
    flags = {"self_attention": self_attention, "cross_attention": cross_attention}
    _check_levels(channels, num_res_blocks, flags, prefix)
    _check_common(embedding, dropout, prefix)
    checks.whole(f"{prefix}num_heads", num_heads, 1, MAX_CHANNELS)
    wrong = [c for c in channels if c % num_heads]
    require(not wrong, f"{prefix}channels", f"be multiples of num_heads {num_heads}", wrong)
    is_twice = any(s and c for s, c in zip(self_attention, cross_attention, strict=True))
    rule = "be off where self_attention is on, which reads the text already"
    require(not is_twice, f"{prefix}cross_attention", rule, cross_attention)


def _check_levels(channels: Any, num_res_blocks: Any, flags: dict[str, Any], prefix: str) -> None:
    entries = {"channels": channels, "num_res_blocks": num_res_blocks, **flags}
    for name, value in entries.items():
        require(isinstance(value, tuple), f"{prefix}{name}", "be a tuple with one entry for each level", value)
    levels = len(channels)
    require(levels > 0, f"{prefix}channels", "have at least one level", channels)
    for name, value in entries.items():
        rule = f"have one entry for each of the {levels} levels of {prefix}channels"
        require(len(value) == levels, f"{prefix}{name}", rule, value)
    for i in range(levels):
        checks.whole(f"{prefix}channels[{i}]", channels[i], 1, MAX_CHANNELS)
        checks.whole(f"{prefix}num_res_blocks[{i}]", num_res_blocks[i], 1, MAX_BLOCKS)
        for name, value in flags.items():
            require(isinstance(value[i], bool), f"{prefix}{name}[{i}]", "be True or False", value[i])


def _check_common(embedding: Any, dropout: Any, prefix: str) -> None:
    # The level is coded by sines and cosines in a quarter of the width.
    checks.whole(f"{prefix}embedding", embedding, 8, MAX_CHANNELS)
    require(embedding % 4 == 0, f"{prefix}embedding", "be a multiple of 4", embedding)
    checks.number(f"{prefix}dropout", dropout, "[0, 1)")
