"""The whole of shapes: one to three objects, relations and counts, at 64x64; the pretrained cascade `shapes`.

Two hours on one CPU core.

python scripts/prepare_data.py --shapes full --output datasets/shapes --num-train 40000
python scripts/train.py --preset shapes --stage base --workdir runs/shapes
python scripts/evaluate.py --workdir runs/shapes --data datasets/shapes
"""

from imagen_jax.config import (
    DataConfig,
    OptimConfig,
    ProcessConfig,
    RunConfig,
    SamplingConfig,
    StageConfig,
    TextConfig,
    UNetConfig,
)


def get_config() -> tuple[StageConfig, ...]:
    base = StageConfig(
        name="base",
        image_size=64,
        # On patches of 4x4 pixels: 16x16 positions at the first level, where a picture costs a sixteenth.
        network=UNetConfig(
            patch_size=4,
            channels=(64, 128),
            num_res_blocks=(1, 2),
            attention=(False, True),
            embedding=128,
            head_dim=32,
        ),
        # Networks this narrow learn outlines sooner with prediction x than with v, which contains all of the noise.
        process=ProcessConfig(prediction="x", loss_weight="min_snr", min_snr_floor=1.0),
        # Flat saturated colors fill these pictures. The dynamic threshold rescales the whole picture and would turn
        # white to grey; use static clipping.
        sampling=SamplingConfig(sampler="unipc", steps=16, guidance_scale=3.0, threshold="static"),
        text=TextConfig(encoder="all-MiniLM-L6-v2", width=384, length=40),
        data=DataConfig(path="datasets/shapes"),
        optim=OptimConfig(
            optimizer="muon",
            learning_rate=2.5e-3,
            warmup_steps=100,
            decay_steps=6000,
            b2=0.99,
            batch_size=16,
            ema_decay=0.998,
        ),
        run=RunConfig(num_steps=6000, checkpoint_every=200, validate_every=1000, sample_every=1000),
    )
    return (base,)
