import dataclasses

import pytest

from imagen_jax.config.presets import load_preset
from imagen_jax.config.validation import validate, validate_cascade


def replace(config, path, value):
    head, _, tail = path.partition(".")
    return dataclasses.replace(
        config, **{head: replace(getattr(config, head), tail, value) if tail else value}
    )


@pytest.mark.parametrize(
    ("stage_index", "field", "value", "message"),
    [
        (1, "image_size", 17, "image_size must be a positive multiple of the network's total stride 2"),
        (
            0,
            "network.patch_size",
            16,
            "image_size must be a positive multiple of the network's total stride 16; got 8",
        ),
        (1, "network.patch_size", 16, "network's total stride 32; got 16"),
        (0, "process.v_cap", 0.5, r"process.v_cap must be in \[1, 1e\+09\]; got 0.5"),
        (0, "process.times", "cosine", "process.times must be one of uniform, logit_normal; got 'cosine'"),
        (0, "process.logit_normal_std", 0.0, r"process.logit_normal_std must be in \[0.1, 10\]; got 0.0"),
        (1, "low_res_size", None, "low_res_size must be set for a super-resolution stage"),
        (1, "low_res_size", 16, "smaller than image_size 16"),
        (0, "optim.accumulation", 3, "multiple of optim.accumulation 3; got 8"),
        (0, "network.attention", (True, True), "one entry for each of the 1 levels"),
        (0, "network.head_dim", 5, "multiples of head_dim 5"),
        (1, "network.num_heads", 3, "multiples of num_heads 3"),
        (0, "process.cond_drop_prob", 1.0, r"in \[0, 1\)"),
        (0, "process.cond_drop_prob", 0.0, r"guidance_scale must be 1 \(off\)"),
        (1, "sampling.aug_level", 1.1, r"aug_level must be in \[0, 1.0\]"),
        (0, "sampling.sampler", "euler", "sampling.sampler must be one of"),
        (0, "process.min_snr_floor", 6.0, "process.min_snr_floor must be from 0 to min_snr_gamma, 5; got 6"),
        (0, "process.prediction", "flow", "process.prediction must be one of"),
        (0, "run.num_steps", 0, "run.num_steps must be at least 1; got 0"),
        (0, "name", "64/base", "name must be an identifier"),
    ],
)
def test_a_wrong_value_is_named_with_its_rule(tiny_configs, stage_index, field, value, message):
    with pytest.raises(ValueError, match=message):
        validate(replace(tiny_configs[stage_index], field, value))


def test_a_level_with_self_attention_has_no_other(tiny_configs):
    config = replace(
        validate(replace(tiny_configs[1], "network.self_attention", (True,))),
        "network.cross_attention",
        (True,),
    )
    with pytest.raises(ValueError, match="off where self_attention is on"):
        validate(config)


def test_stages_must_follow_each_other(tiny_configs):
    base, super_resolution = tiny_configs
    with pytest.raises(
        ValueError, match="low_res_size of stage sr16 must be 8, the image_size of the stage base"
    ):
        validate_cascade((base, dataclasses.replace(super_resolution, low_res_size=4)))
    with pytest.raises(ValueError, match="stage names must be distinct"):
        validate_cascade((base, dataclasses.replace(super_resolution, name="base")))


def test_crops_must_fit_the_network_and_the_low_res_grid():
    (config,) = load_preset("sr1024")
    with pytest.raises(ValueError, match="crop_size must be at least 1; got 0"):
        validate(dataclasses.replace(config, crop_size=0))
    for size in (250, 2048):
        with pytest.raises(ValueError, match="crop_size must be a multiple of 16"):
            validate(dataclasses.replace(config, crop_size=size))
    (base,) = load_preset("base64")
    with pytest.raises(ValueError, match="crop_size must be None for a stage without low_res_size"):
        validate(dataclasses.replace(base, crop_size=32))
