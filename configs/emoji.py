"""Emoji by their names, 16x16 -> 64x64: real artwork; half an hour on two CPU cores.

npm pack @iconify-json/noto emojibase-data
python scripts/prepare_data.py --icons iconify-json-noto-*.tgz --keywords emojibase-data-*.tgz --output datasets/emoji
python scripts/train.py --preset emoji --stage base --workdir runs/emoji
python scripts/train.py --preset emoji --stage sr64 --workdir runs/emoji
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
OPTIM = OptimConfig(optimizer="muon", learning_rate=2.5e-3, warmup_steps=50, b2=0.99, ema_decay=0.995)


def get_config() -> tuple[StageConfig, ...]:
    base = StageConfig(
        name="base",
        image_size=16,
        network=UNetConfig(
            channels=(32, 48, 96),
            num_res_blocks=(1, 1, 1),
            attention=(False, True, True),
            embedding=128,
            head_dim=16,
        ),
        process=PROCESS,
        sampling=SamplingConfig(sampler="dpmpp_2m", steps=32, guidance_scale=3.0),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(OPTIM, decay_steps=6500, batch_size=8),
        run=RunConfig(num_steps=6500, checkpoint_every=500, validate_every=500, sample_every=1000),
    )
    super_resolution = StageConfig(
        name="sr64",
        image_size=64,
        low_res_size=16,
        network=EfficientUNetConfig(
            stem_channels=16,
            channels=(32, 64, 96),
            num_res_blocks=(1, 1, 1),
            self_attention=(False, False, True),
            cross_attention=(False, False, False),
            embedding=128,
            num_heads=4,
        ),
        process=dataclasses.replace(PROCESS, max_aug_level=0.5),
        sampling=SamplingConfig(sampler="dpmpp_2m", steps=16, guidance_scale=2.0, aug_level=0.1),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(OPTIM, decay_steps=1800, batch_size=8),
        run=RunConfig(num_steps=1800, checkpoint_every=300, validate_every=300, sample_every=600),
    )
    return base, super_resolution
