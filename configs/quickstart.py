"""A cascade that trains in minutes on two CPU cores: single shapes, 32x32 -> 64x64.

bash scripts/train_quickstart.sh
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
DATA = DataConfig(path="datasets/shapes_single")
# Networks this narrow learn outlines sooner with prediction x than with v, which contains all of the noise.
PROCESS = ProcessConfig(prediction="x", loss_weight="min_snr", min_snr_floor=1.0)
OPTIM = OptimConfig(optimizer="muon", learning_rate=2.5e-3, warmup_steps=50, b2=0.99, ema_decay=0.995)

# Compiling validation and samples would take a good part of these short runs.
NO_MONITORING = {"validate_every": 0, "sample_every": 0}


def get_config() -> tuple[StageConfig, ...]:
    base = StageConfig(
        name="base",
        image_size=32,
        # On patches of 2x2 pixels: 16x16 positions at the first level, where a picture costs a quarter.
        network=UNetConfig(
            patch_size=2,
            channels=(32, 64, 128),
            num_res_blocks=(1, 1, 1),
            attention=(False, True, True),
            embedding=64,
            head_dim=32,
        ),
        # Most pictures have the noise in which outlines are decided, some that in which the background is.
        process=dataclasses.replace(
            PROCESS, times="logit_normal", logit_normal_mean=0.9, logit_normal_std=1.2
        ),
        sampling=SamplingConfig(sampler="unipc", steps=16, guidance_scale=3.0, threshold="static"),
        text=TEXT,
        data=DATA,
        # Small batches: the number of steps teaches outlines, more than that of pictures.
        optim=dataclasses.replace(OPTIM, decay_steps=4400, batch_size=16),
        run=RunConfig(num_steps=4400, checkpoint_every=550, log_every=50, **NO_MONITORING),
    )
    super_resolution = StageConfig(
        name="sr64",
        image_size=64,
        low_res_size=32,
        crop_size=32,
        network=EfficientUNetConfig(
            patch_size=2,
            stem_channels=32,
            channels=(32, 64),
            num_res_blocks=(1, 1),
            self_attention=(False, False),
            cross_attention=(False, False),
            embedding=64,
        ),
        process=dataclasses.replace(PROCESS, max_aug_level=0.5),
        sampling=SamplingConfig(
            sampler="unipc", steps=6, guidance_scale=1.0, threshold="static", aug_level=0.1
        ),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(OPTIM, decay_steps=1200, batch_size=16),
        run=RunConfig(num_steps=1200, checkpoint_every=200, log_every=20, **NO_MONITORING),
    )
    return base, super_resolution
