"""The whole of shapes: one to three objects, relations and counts, 32x32 -> 64x64; the pretrained cascade `shapes`.

The base learns outlines on single objects, then whole scenes, then on pictures with an object in each half what left,
right, above and below mean, then where small objects are that stand so, and last whole scenes again:

python scripts/prepare_data.py --shapes single --output datasets/shapes_single --num-train 12000
python scripts/prepare_data.py --shapes full --output datasets/shapes --num-train 200000
python scripts/prepare_data.py --shapes halves --output datasets/shapes_halves --num-train 12000
python scripts/prepare_data.py --shapes relations --output datasets/shapes_relations --num-train 9000
python scripts/train.py --preset shapes:single --stage base --workdir runs/single
python scripts/train.py --preset shapes --stage base --workdir runs/scenes --init-from runs/single/base
python scripts/train.py --preset shapes:halves --stage base --workdir runs/halves --init-from runs/scenes/base
python scripts/train.py --preset shapes:relations --stage base --workdir runs/relations --init-from runs/halves/base
python scripts/train.py --preset shapes:again --stage base --workdir runs/shapes --init-from runs/relations/base
python scripts/train.py --preset shapes --stage sr64 --workdir runs/shapes
python scripts/evaluate.py --workdir runs/shapes --data datasets/shapes --num 400

The first two took 9 minutes on an H200 (with --run.data-workers 5), the next three 9, 79 and 15 on a CPU core, and
super-resolution 20 on a CPU core. The base distilled to four steps:

python scripts/train.py --preset shapes:four --stage base --workdir runs/four --init-from shapes/base

Two hours on a CPU core. The result is the pretrained cascade `shapes_four`.
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

TEXT = TextConfig(encoder="all-MiniLM-L6-v2", width=384, length=40)
DATA = DataConfig(path="datasets/shapes")
# Networks this narrow learn outlines sooner with prediction x than with v, which contains all of the noise.
PROCESS = ProcessConfig(prediction="x", loss_weight="min_snr", min_snr_floor=1.0)
OPTIM = OptimConfig(
    optimizer="muon", learning_rate=2.5e-3, warmup_steps=50, b2=0.99, batch_size=128, ema_decay=0.998
)


def get_config(
    part: Literal["full", "single", "halves", "relations", "again", "four"] = "full",
) -> tuple[StageConfig, ...]:
    base = StageConfig(
        name="base",
        image_size=32,
        # On patches of 2x2 pixels: 16x16 positions at the first level, where a picture costs a quarter.
        network=UNetConfig(
            patch_size=2,
            channels=(48, 96, 128),
            num_res_blocks=(1, 1, 1),
            attention=(False, True, True),
            embedding=128,
            head_dim=32,
        ),
        # A picture of 32x32 shows its outlines through more noise than one of 16x16: times where they are decided.
        process=dataclasses.replace(
            PROCESS, times="logit_normal", logit_normal_mean=0.8, logit_normal_std=1.0
        ),
        # Flat saturated colors fill these pictures. The dynamic threshold rescales the whole picture and would turn
        # white to grey; use static clipping.
        sampling=SamplingConfig(sampler="unipc", steps=16, guidance_scale=3.0, threshold="static"),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(OPTIM, decay_steps=18_000),
        run=RunConfig(num_steps=18_000, checkpoint_every=1000, validate_every=0, sample_every=0),
    )
    if part == "four":
        return (_distilled(base, steps=4),)
    if part != "full":
        return (_lesson(base, part),)
    super_resolution = StageConfig(
        name="sr64",
        image_size=64,
        low_res_size=32,
        crop_size=32,
        network=EfficientUNetConfig(
            patch_size=2,
            stem_channels=48,
            channels=(64, 96),
            num_res_blocks=(1, 1),
            self_attention=(False, False),
            cross_attention=(False, False),
            embedding=64,
            num_heads=4,
        ),
        process=dataclasses.replace(PROCESS, max_aug_level=0.5),
        sampling=SamplingConfig(
            sampler="unipc", steps=6, guidance_scale=1.0, threshold="static", aug_level=0.1
        ),
        text=TEXT,
        data=DATA,
        optim=dataclasses.replace(OPTIM, batch_size=32, decay_steps=2500, ema_decay=0.995),
        run=RunConfig(num_steps=2500, checkpoint_every=250, validate_every=0, sample_every=0),
    )
    return base, super_resolution


def _lesson(base: StageConfig, part: str) -> StageConfig:
    """Return the base as it is trained before or after the whole scenes."""
    data = DataConfig(path=f"datasets/shapes_{part}")
    if part == "single":
        return dataclasses.replace(
            base, data=data, optim=OPTIM, run=dataclasses.replace(base.run, num_steps=2000)
        )
    optim = dataclasses.replace(OPTIM, learning_rate=1.5e-3, batch_size=32)
    if part == "halves":
        # Which side an object is on is decided in so much noise that none is to be seen yet.
        mean, std, steps = 3.0, 1.0, 450
        optim = dataclasses.replace(optim, ema_decay=0.99)
    elif part == "relations":
        # Every other picture is of any kind, so that less is forgotten.
        mean, std, steps = 1.6, 1.2, 4200
        data = dataclasses.replace(data, prior_path=DATA.path)
        optim = dataclasses.replace(optim, decay_steps=steps)
    else:
        mean, std, steps, data = 1.2, 1.2, 700, DATA
        optim = dataclasses.replace(optim, learning_rate=1e-3, decay_steps=steps, ema_decay=0.99)
    return dataclasses.replace(
        base,
        data=data,
        process=dataclasses.replace(base.process, logit_normal_mean=mean, logit_normal_std=std),
        optim=optim,
        run=dataclasses.replace(base.run, num_steps=steps, checkpoint_every=150),
    )


def _distilled(base: StageConfig, steps: int) -> StageConfig:
    """Return the base as the pretrained one is distilled into it."""
    num_steps = 4000
    return dataclasses.replace(
        base,
        process=dataclasses.replace(base.process, times="uniform"),
        distilled=DistilledConfig(steps=steps, substeps=256 // steps),
        sampling=SamplingConfig(sampler="ddim", steps=steps, guidance_scale=1.0, threshold="static"),
        # Two networks follow each other: an optimiser without momentum does not overshoot.
        optim=dataclasses.replace(
            OPTIM,
            objective="moment_matching",
            teacher="shapes/base",
            optimizer="adamw",
            learning_rate=3e-4,
            b1=0.0,
            batch_size=32,
            decay_steps=num_steps,
            ema_decay=0.995,
        ),
        run=dataclasses.replace(base.run, num_steps=num_steps, checkpoint_every=250),
    )
