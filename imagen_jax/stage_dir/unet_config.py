"""unet/config.json of DeepFloyd IF in diffusers' layout, and the configuration of the network that it describes."""

import dataclasses
import json
import re
from typing import Any

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require
from imagen_jax.models.if_unet import IFUNetConfig

CLASS = "UNet2DConditionModel"
_ATTENDS = {"ResnetDownsampleBlock2D": False, "SimpleCrossAttnDownBlock2D": True}
# What all released networks have, and the default of diffusers that a key has where it is absent.
_FIXED: dict[str, tuple[Any, Any]] = {
    "act_fn": ("gelu", "silu"),
    "addition_embed_type": ("text", None),
    "center_input_sample": (False, False),
    "class_embeddings_concat": (False, False),
    "conv_in_kernel": (3, 3),
    "conv_out_kernel": (3, 3),
    "cross_attention_norm": ("group_norm", None),
    "encoder_hid_dim_type": ("text_proj", "text_proj"),
    "flip_sin_to_cos": (True, True),
    "freq_shift": (0, 0),
    "mid_block_type": ("UNetMidBlock2DSimpleCrossAttn", "UNetMidBlock2DCrossAttn"),
    "norm_eps": (1e-5, 1e-5),
    "num_class_embeds": (None, None),
    "resnet_time_scale_shift": ("scale_shift", "default"),
    "time_cond_proj_dim": (None, None),
    "time_embedding_type": ("positional", "positional"),
    "timestep_post_act": (None, None),
}
_OTHER = "give the unet of a pipeline of DeepFloyd IF"
# Keys of the file by the fields of `IFUNetConfig` that are called otherwise.
_KEYS = {
    "channels": "block_out_channels",
    "num_res_blocks": "layers_per_block",
    "embedding": "time_embedding_dim",
    "text_width": "cross_attention_dim",
    "head_dim": "attention_head_dim",
    "pool_heads": "addition_embed_type_num_heads",
    "groups": "norm_num_groups",
}


@dataclasses.dataclass(frozen=True)
class UNetDescription:
    """What config.json says of a stage.

    Attributes:
      network: its configuration.
      is_super_resolution: whether it enlarges pictures.
      image_channels: C.
      image_size: side of the pictures that it was trained on.
      text_width: D of the embeddings that it reads.
    """

    network: IFUNetConfig
    is_super_resolution: bool
    image_channels: int
    image_size: int
    text_width: int


def parse(data: dict[str, Any]) -> UNetDescription:
    """Return what a config.json describes.

    Raises:
      ValueError: it is of another kind of network, or a value is missing or wrong; begins with its name.
    """
    is_latent = data.get("in_channels") == 7 and data.get("num_class_embeds") is not None
    rule, got = "be a network of pixels", Verbatim("a stage III latent upscaler, which enlarges the latents of a VAE")
    require(not is_latent, "the unet", rule, got, "as third stage, give any super-resolution stage of ours")
    try:
        return _parse(data)
    except ValueError as wrong:
        text = re.sub(rf"\b({'|'.join(_KEYS)})\b", lambda field: _KEYS[field[1]], str(wrong))
        raise checks.with_fix(text, _OTHER) from wrong


def _parse(data: dict[str, Any]) -> UNetDescription:
    """Return what `parse` does; errors name the fields of `IFUNetConfig` for some keys, and no fix."""
    require(data.get("_class_name") == CLASS, "_class_name", f"be {CLASS}", data.get("_class_name"))
    for key, (value, default) in _FIXED.items():
        found = data.get(key, default)
        require(found == value, key, f"be {json.dumps(value)}", found)
    channels = tuple(_list(data, "block_out_channels"))
    levels = len(channels)
    down, up = (_list(data, f"{way}_block_types") for way in ("down", "up"))
    is_known = len(down) == levels and all(isinstance(name, str) and name in _ATTENDS for name in down)
    rule = f"be {levels} of {' and '.join(_ATTENDS)}"
    require(is_known, "down_block_types", rule, down)
    mirrored = [name.replace("Down", "Up") for name in reversed(down)]
    require(up == mirrored, "up_block_types", "mirror down_block_types", up)
    layers = data.get("layers_per_block", 2)
    class_embed, is_cross = data.get("class_embed_type"), _one(data, "only_cross_attention", False)
    require(class_embed in (None, "timestep"), "class_embed_type", "be null or 'timestep'", class_embed)
    require(isinstance(is_cross, bool), "only_cross_attention", "be true or false", is_cross)
    in_middle = data.get("mid_block_only_cross_attention")
    require(in_middle in (None, is_cross), "mid_block_only_cross_attention", "be only_cross_attention", in_middle)
    act = data.get("time_embedding_act_fn")
    require(act in (None, "gelu"), "time_embedding_act_fn", "be null or 'gelu'", act)
    rescale, middle = (
        checks.number(key, data.get(key, 1.0), "(0, 1000]")
        for key in ("resnet_out_scale_factor", "mid_block_scale_factor")
    )
    embedding = data.get("time_embedding_dim")
    network = IFUNetConfig(
        channels=channels,
        num_res_blocks=tuple(layers) if isinstance(layers, list) else (layers,) * levels,
        attention=tuple(_ATTENDS[name] for name in down),
        embedding=4 * channels[0] if embedding is None else embedding,
        text_width=_one(data, "cross_attention_dim", 1280),
        head_dim=_one(data, "attention_head_dim", 8),
        pool_heads=data.get("addition_embed_type_num_heads", 64),
        groups=data.get("norm_num_groups", 32),
        self_attention=not is_cross,
        rescale=rescale,
        middle_rescale=middle,
        activates_embedding=act is not None,
        activates_in_blocks=not checks.boolean("resnet_skip_time_act", data.get("resnet_skip_time_act", False)),
        dropout=checks.number("dropout", data.get("dropout", 0.0), "[0, 1)"),
    )
    network.check()
    given, made = (checks.whole(f"{way}_channels", data.get(f"{way}_channels", 4), 1, 2**16) for way in ("in", "out"))
    is_sr = class_embed is not None
    rule = f"be {'' if is_sr else 'twice '}in_channels, {given}, of which half is eps and half the variance"
    require(made == (given if is_sr else 2 * given) and made % 2 == 0, "out_channels", rule, made)
    width = checks.whole("encoder_hid_dim", data.get("encoder_hid_dim"), 1, 2**16)
    rule = f"divide encoder_hid_dim, {width}"
    require(width % network.pool_heads == 0, "addition_embed_type_num_heads", rule, network.pool_heads)
    size = data.get("sample_size") or (256 if is_sr else 64)
    size = size[0] if isinstance(size, list) and len(set(size)) == 1 else size
    return UNetDescription(network, is_sr, made // 2, checks.whole("sample_size", size, 1, 2**14), width)


def to_json(described: UNetDescription) -> dict[str, Any]:
    """Return the config.json of a stage, of which `parse` is the inverse."""
    network, is_sr = described.network, described.is_super_resolution
    down = [next(name for name, attends in _ATTENDS.items() if attends == is_on) for is_on in network.attention]
    return {key: value for key, (value, _) in _FIXED.items()} | {
        "_class_name": CLASS,
        "addition_embed_type_num_heads": network.pool_heads,
        "attention_head_dim": network.head_dim,
        "block_out_channels": list(network.channels),
        "class_embed_type": "timestep" if is_sr else None,
        "cross_attention_dim": network.text_width,
        "down_block_types": down,
        "dropout": network.dropout,
        "encoder_hid_dim": described.text_width,
        "in_channels": described.image_channels * (2 if is_sr else 1),
        "layers_per_block": list(network.num_res_blocks),
        "mid_block_only_cross_attention": None,
        "mid_block_scale_factor": network.middle_rescale,
        "norm_num_groups": network.groups,
        "only_cross_attention": not network.self_attention,
        "out_channels": 2 * described.image_channels,
        "resnet_out_scale_factor": network.rescale,
        "resnet_skip_time_act": not network.activates_in_blocks,
        "sample_size": described.image_size,
        "time_embedding_act_fn": "gelu" if network.activates_embedding else None,
        "time_embedding_dim": network.embedding,
        "up_block_types": [name.replace("Down", "Up") for name in reversed(down)],
    }


def _list(data: dict[str, Any], key: str) -> list[Any]:
    value = data.get(key)
    require(isinstance(value, list) and len(value) > 0, key, "be a list with one entry for each level", value)
    return value


def _one(data: dict[str, Any], key: str, default: int | bool) -> Any:
    """Return a value that may be given once for each level, if it is the same for all."""
    value = data.get(key, default)
    if not isinstance(value, list):
        return value
    require(len({repr(each) for each in value}) == 1, key, "be the same for all levels", value)
    return value[0]
