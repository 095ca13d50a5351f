"""Emoji in five styles by their names, 32x32 -> 256x256: real artwork.

Networks of this size have to see each picture some hundred times: many hours on CPU cores.

npm pack @iconify-json/noto @iconify-json/noto-v1 @iconify-json/fluent-emoji @iconify-json/fluent-emoji-flat \
    @iconify-json/fxemoji emojibase-data
python scripts/prepare_data.py --icons iconify-json-*.tgz --keywords emojibase-data-*.tgz --size 256 \
    --output datasets/emoji
python scripts/train.py --preset emoji --stage base --workdir runs/emoji
python scripts/train.py --preset emoji --stage sr256 --workdir runs/emoji
"""

import dataclasses

from imagen_jax.config import (
    DataConfig,
    EfficientUNetConfig,
    OptimConfig,
    ProcessConfig,
    RunConfig,
    SamplingConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
)

TEXT = TextConfig(encoder="all-MiniLM-L6-v2", width=384, length=24)
DATA = DataConfig(path="datasets/emoji")
# Networks this narrow learn outlines sooner with prediction x than with v, which contains all of the noise.
PROCESS = ProcessConfig(prediction="x", loss_weight="min_snr", min_snr_floor=1.0)
OPTIM = OptimConfig(
    optimizer="muon", learning_rate=2.5e-3, warmup_steps=100, b2=0.99, batch_size=32, ema_decay=0.998
)


def get_config() -> tuple[StageConfig, ...]:
    base = StageConfig(
        name="base",
        image_size=32,
        # On patches of 2x2 pixels: 16x16 positions at the first level, where a picture costs a quarter.
        network=UNetConfig(
            patch_size=2,
            channels=(64, 96, 192),
            num_res_blocks=(1, 1, 2),
            attention=(False, True, True),
            embedding=192,
            head_dim=32,
        ),
        process=dataclasses.replace(PROCESS, times="logit_normal", logit_normal_mean=0.8, logit_normal_std=1.0),
        sampling=SamplingConfig(sampler="dpmpp_2m", steps=24, guidance_scale=3.0),
        text=TEXT,
        data=DATA,
        optim=OPTIM,
        run=RunConfig(num_steps=50_000, checkpoint_every=250, validate_every=1000, sample_every=1000),
    )
    super_resolution = StageConfig(
        name="sr256",
        image_size=256,
        low_res_size=32,
        crop_size=64,
        network=EfficientUNetConfig(
            patch_size=8,
            stem_channels=96,
            channels=(96, 128),
            num_res_blocks=(2, 1),
            self_attention=(False, False),
            cross_attention=(False, False),
            embedding=128,
            num_heads=4,
        ),
        process=dataclasses.replace(PROCESS, max_aug_level=0.5),
        sampling=SamplingConfig(sampler="dpmpp_2m", steps=8, guidance_scale=1.0, aug_level=0.1),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(OPTIM, decay_steps=3000),
        run=RunConfig(num_steps=3000, checkpoint_every=500, validate_every=0, sample_every=0),
    )
    return base, super_resolution
