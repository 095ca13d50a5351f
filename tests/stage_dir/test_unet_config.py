import json

import pytest

from imagen_jax.models.if_unet import RELEASED
from imagen_jax.stage_dir import unet_config
from tests.conftest import GOLDENS

CONFIGS = {name: golden["config"] for name, golden in json.loads((GOLDENS / "if_released.json").read_text()).items()}
# Keys of diffusers' other networks, which have no effect on these.
OTHER = {
    "addition_time_embed_dim", "attention_type", "downsample_padding", "dual_cross_attention", "num_attention_heads",
    "projection_class_embeddings_input_dim", "reverse_transformer_layers_per_block", "transformer_layers_per_block",
    "upcast_attention", "use_linear_projection", "_diffusers_version",
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_written_is_what_was_read(name):
    described = unet_config.parse(CONFIGS[name])
    assert described.network == RELEASED[name] and described.text_width == 4096
    assert described.is_super_resolution == ("-II-" in name) and described.image_channels == 3
    written = unet_config.to_json(described)
    assert unet_config.parse(written) == described
    differing = {key for key in CONFIGS[name] if key not in OTHER and written.get(key) != CONFIGS[name][key]}
    # Stage I gives the number of layers once for all levels, and leaves the width of the embedding to its default.
    assert differing <= {"layers_per_block", "time_embedding_dim"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "_class_name must be UNet2DConditionModel; got 'UNet2DModel'"),
        ({"block_out_channels": 192}, "block_out_channels must be a list"),
        ({"block_out_channels": [192, 384, 576, 770]}, "^block_out_channels must be multiples of attention_head_dim"),
        ({"down_block_types": ["DownBlock2D"] * 4}, "down_block_types must be 4 of ResnetDownsampleBlock2D and"),
        ({"up_block_types": ["ResnetUpsampleBlock2D"] * 4}, "up_block_types must mirror down_block_types"),
        ({"layers_per_block": [3, 3]}, "^layers_per_block must have one entry for each of the 4 levels"),
        ({"attention_head_dim": [64, 64, 64, 32]}, "attention_head_dim must be the same for all levels"),
        ({"mid_block_only_cross_attention": True}, "mid_block_only_cross_attention must be only_cross_attention"),
        ({"class_embed_type": "projection"}, "class_embed_type must be null or 'timestep'"),
        ({"time_embedding_act_fn": "silu"}, "time_embedding_act_fn must be null or 'gelu'"),
        ({"in_channels": 6}, "out_channels must be twice in_channels, 6, of which half is eps"),
        ({"norm_num_groups": None}, "^norm_num_groups must be a whole number"),
        ({"cross_attention_dim": 40}, "^cross_attention_dim must be a multiple of 32"),
        ({"encoder_hid_dim": None}, "encoder_hid_dim must be a whole number"),
        ({"sample_size": [64, 32]}, "sample_size must be a whole number"),
        ({"block_out_channels": ["a"] * 4}, r"^block_out_channels\[0\] must be a whole number"),
        ({"time_embedding_dim": -1}, "^time_embedding_dim must be at least 1"),
        ({"addition_embed_type_num_heads": 5}, "_type_num_heads must divide encoder_hid_dim, 4096; got 5"),
        ({"only_cross_attention": [True, False]}, "only_cross_attention must be the same for all levels"),
        ({"dropout": "x"}, "dropout must be a finite number"),
    ],
)
def test_networks_of_another_kind_are_refused(changes, message):
    """By the key of the file, and with what to do."""
    with pytest.raises(ValueError, match=message) as refused:
        unet_config.parse(CONFIGS["IF-I-M"] | changes)
    assert str(refused.value).endswith(": give the unet of a pipeline of DeepFloyd IF.")


def test_what_diffusers_takes_as_a_list_of_equal_values_is_one():
    listed = CONFIGS["IF-I-M"] | {"only_cross_attention": [False] * 4, "attention_head_dim": [64] * 4}
    assert unet_config.parse(listed) == unet_config.parse(CONFIGS["IF-I-M"])
