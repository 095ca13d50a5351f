"""Emoji in five styles by their names, 64x64 -> 256x256: real artwork; the pretrained cascade `emoji`.

npm pack @iconify-json/noto @iconify-json/noto-v1 @iconify-json/fluent-emoji @iconify-json/fluent-emoji-flat \
    @iconify-json/fxemoji emojibase-data
python scripts/prepare_data.py --icons iconify-json-*.tgz --keywords emojibase-data-*.tgz --size 256 \
    --output datasets/emoji
python scripts/train.py --preset emoji --stage base --workdir runs/emoji --run.data-workers 13
python scripts/train.py --preset emoji --stage sr256 --workdir runs/emoji

The base took 5 minutes on an H200: networks of this size have to see each picture some hundred times, which takes CPU
cores days. sr256 took 32 minutes on a CPU core. The base distilled to four steps:

python scripts/train.py --preset emoji:four --stage base --workdir runs/emoji_four --init-from emoji/base

Two hours on a CPU core beside other work.
"""

import dataclasses
from typing import Literal

from imagen_jax.config import (
    DataConfig,
    DistilledConfig,
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
OPTIM = OptimConfig(optimizer="muon", warmup_steps=100, b2=0.99)


def get_config(part: Literal["full", "four"] = "full") -> tuple[StageConfig, ...]:
    base = StageConfig(
        name="base",
        image_size=64,
        # On patches of 4x4 pixels: 16x16 positions at the first level.
        network=UNetConfig(
            patch_size=4,
            channels=(96, 128, 192),
            num_res_blocks=(1, 1, 1),
            attention=(False, True, True),
            embedding=128,
            head_dim=32,
            dropout=0.1,
        ),
        # Silhouettes are decided at noisy times, details of artwork at clear ones: a wide distribution.
        process=dataclasses.replace(
            PROCESS, times="logit_normal", logit_normal_mean=1.0, logit_normal_std=1.4
        ),
        # The subject is decided at log-SNR below 0; guidance above it adds grain and saturates colors. The final
        # estimate smooths the remaining grain. Dynamic thresholding with the default percentile would turn the white
        # ground to grey.
        sampling=SamplingConfig(
            sampler="dpmpp_2m",
            steps=24,
            guidance_scale=4.0,
            guidance_max_logsnr=0.0,
            threshold="static",
            final_logsnr=1.5,
        ),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(
            OPTIM, learning_rate=2.5e-3, batch_size=128, decay_steps=11_000, ema_decay=0.999
        ),
        run=RunConfig(num_steps=11_000, checkpoint_every=1000, validate_every=0, sample_every=0),
    )
    if part == "four":
        return (_distilled(base, steps=4),)
    super_resolution = StageConfig(
        name="sr256",
        image_size=256,
        low_res_size=64,
        crop_size=64,
        network=EfficientUNetConfig(
            patch_size=4,
            stem_channels=32,
            channels=(48, 96),
            num_res_blocks=(1, 2),
            self_attention=(False, False),
            cross_attention=(False, False),
            embedding=64,
            num_heads=4,
        ),
        # Noisy times more often: the one step of sampling begins with noise alone.
        process=dataclasses.replace(
            PROCESS, times="logit_normal", logit_normal_mean=1.0, logit_normal_std=1.4, max_aug_level=0.5
        ),
        # Noise, in z or in the low-res image, leaves grain on flat areas, and more steps add no detail.
        sampling=SamplingConfig(
            sampler="dpmpp_2m",
            steps=1,
            guidance_scale=1.0,
            threshold="static",
            aug_level=0.0,
            final_logsnr=0.0,
        ),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(
            OPTIM, learning_rate=2e-3, batch_size=16, decay_steps=16_000, ema_decay=0.999
        ),
        run=RunConfig(num_steps=16_000, checkpoint_every=500, validate_every=0, sample_every=0),
    )
    return base, super_resolution


def _distilled(base: StageConfig, steps: int) -> StageConfig:
    """Return the base as the pretrained one is distilled into it."""
    num_steps = 4000
    return dataclasses.replace(
        base,
        network=dataclasses.replace(base.network, dropout=0.0),
        process=dataclasses.replace(base.process, times="uniform"),
        distilled=DistilledConfig(steps=steps, substeps=256 // steps),
        sampling=SamplingConfig(sampler="ddim", steps=steps, guidance_scale=1.0, threshold="static"),
        # Two networks follow each other: an optimiser without momentum does not overshoot.
        optim=dataclasses.replace(
            OPTIM,
            objective="moment_matching",
            teacher="emoji/base",
            optimizer="adamw",
            learning_rate=3e-4,
            warmup_steps=50,
            b1=0.0,
            batch_size=16,
            decay_steps=num_steps,
            ema_decay=0.995,
        ),
        run=dataclasses.replace(base.run, num_steps=num_steps, checkpoint_every=250),
    )
