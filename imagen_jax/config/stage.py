"""Frozen, hashable configurations: one `StageConfig` describes one diffusion stage completely.

`validation.validate` checks it before anything is loaded or compiled. It is stored as JSON in every checkpoint, so that
a stage can be rebuilt from its directory alone.
"""

import dataclasses
import math
from typing import Annotated, Literal

from imagen_jax.config.sampling import SamplingConfig
from imagen_jax.models.lora import Targets
from imagen_jax.models.network import NetworkConfig, Remat
from imagen_jax.models.unet import UNetConfig
from imagen_jax.registry import Registry

# Filled by imagen_jax.training, and by code outside the package: a configuration only names the entries.
OBJECTIVES = Registry("objective")
OPTIMIZERS = Registry("optimizer")


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """The diffusion process and its loss."""

    schedule: str = "cosine"
    """Noise schedule of training, a name in diffusion.schedules.SCHEDULES: cosine, linear, shifted_cosine,
    interpolated_cosine, sigmoid, edm, lognormal or discrete_cosine."""
    zero_terminal_snr: bool = False
    """Stretch the schedule so that z at t = 1 is pure noise; not for prediction eps."""
    prediction: Literal["x", "eps", "v", "edm"] = "v"
    """What the network predicts."""
    loss_weight: Literal["plain", "min_snr", "sigmoid", "v"] = "plain"
    """Weight of the loss by log-SNR."""
    min_snr_gamma: float = 5.0
    """min_snr: largest weight on MSE(x)."""
    min_snr_floor: float = 0.0
    """min_snr: least weight on MSE(x); 1 is the truncated SNR."""
    sigmoid_bias: float = 2.0
    """sigmoid: larger weighs fine detail more; about 2 for 64x64, smaller for larger images."""
    v_cap: float = 400.0
    """v: largest weight on MSE(x); up to there it is the plain loss of prediction v."""
    times: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of the times of training in [0, 1]; the loss depends on it, except with loss_weight sigmoid, which
    divides by its density."""
    logit_normal_mean: float = 0.8
    """logit_normal: mean of log(t / (1 - t)); above 0, most pictures are noisy."""
    logit_normal_std: float = 0.8
    """logit_normal: standard deviation of log(t / (1 - t))."""
    cond_drop_prob: float = 0.1
    """Share of captions dropped in training for classifier-free guidance, in [0, 1); 0: the stage cannot be guided."""
    max_aug_level: float = 1.0
    """Super-resolution only: noise levels of the low-res image are uniform in [0, this] in training."""


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The frozen language model."""

    encoder: str = "all-MiniLM-L6-v2"
    """Name on the Hugging Face hub, or directory, of a T5, BERT or CLIP."""
    width: int | None = 384
    """Width of its embeddings; None: training takes it from the encoder."""
    length: int = 32
    """Tokens of each caption that reach the network; longer captions are cut."""
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"
    """Type of its weights; int8 computes in bfloat16."""
    output: Literal["last", "padded", "penultimate", "pooled"] = "last"
    """Which of its outputs is used; padded: that of all `length` tokens, for DeepFloyd IF; the other two: CLIP only."""
    clean_captions: bool = False
    """Remove HTML, links and other web residue from captions first; with output padded by the rules of DeepFloyd IF."""
    model_hash: str | None = None
    """SHA-256 of its weights, with which later runs compare theirs; None: training takes it from the encoder."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Captioned pictures: any TFDS data set in ArrayRecord files, as `imagen-jax prepare` writes them."""

    path: str = "datasets/shapes"
    """Directory of the data set."""
    split: str = "train"
    """Split to train on; slices such as train[:1000] work."""
    image_key: str = "image"
    """Name of the feature that holds pictures."""
    caption_key: str = "caption"
    """Name of the feature that holds captions."""
    crop: Literal["center", "random", "aspect"] = "center"
    """How pictures are cropped to squares: the center, a square at a random place, or a window of random area and
    aspect ratio."""
    flip: bool = False
    """Mirror half of the pictures; captions such as "left of" become wrong."""
    prior_path: str = ""
    """Prior preservation: directory of a second data set, of which every other picture of a batch is; empty: none."""
    prior_split: str = "train"
    """Split of the second data set."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and averaging."""

    objective: Annotated[str, OBJECTIVES] = "denoising"
    """What is minimised; one of training.objectives."""
    teacher: str = ""
    """DIR, DIR@STEP, CASCADE or CASCADE/STAGE, the trained stage that an objective learns from; empty: none."""
    optimizer: Annotated[str, OPTIMIZERS] = "adamw"
    """Optimiser of the parameters; one of training.optim."""
    learning_rate: float = 1e-4
    """Highest learning rate, reached after the warm-up."""
    warmup_steps: int = 10_000
    """Steps in which the rate rises linearly from 0."""
    decay_steps: int = 0
    """Step at which the rate has fallen to 0 along a cosine, counted from the start; 0: constant after the warm-up."""
    weight_decay: float = 0.0
    """Decoupled weight decay of kernels."""
    b1: float = 0.9
    """Decay of the mean of gradients; not for adafactor."""
    b2: float = 0.999
    """Decay of the mean of squared gradients; not for adafactor."""
    eps: float = 1e-8
    """Added to the root of the mean of squared gradients; not for adafactor."""
    clip_norm: float = 1.0
    """Gradients of a larger global norm are scaled down to it; 0: off."""
    batch_size: int = 2048
    """Images in a step, over all devices."""
    accumulation: int = 1
    """Parts that a batch is computed in, to save memory."""
    prior_weight: float = 1.0
    """Weight on the loss of pictures of data.prior_path; denoising and preservation only."""
    ema_decay: float = 0.9999
    """Decay of the averaged parameters, which are sampled from, in [0, 1)."""


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Fine-tuning by LoRA (Hu et al. 2021): adapters of low rank are trained, the parameters of init_from stay."""

    rank: int = 0
    """Rank of the adapters; 0: off, all parameters are trained."""
    scale: float = 1.0
    """Factor on the adapters in the network; PEFT's lora_alpha / r."""
    targets: Targets = "attention"
    """Kernels with adapters: those of attention layers and of projections of the text, or all kernels."""


@dataclasses.dataclass(frozen=True)
class DistilledConfig:
    """What a stage that learns from a teacher is made for."""

    steps: int = 0
    """Steps of DDIM that the stage is distilled to, the only number that it samples in; 0: it is not distilled."""
    substeps: int = 2
    """Steps of the teacher that one step of the stage stands for."""
    guidance_scale: float | None = None
    """Guidance scale of the teacher; the stage is sampled without guidance. None: the one that the teacher is sampled
    with."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Options that may differ between a run and its continuation: none of them changes a parameter's value."""

    num_steps: int = 2_500_000
    """Steps to train, from the start."""
    checkpoint_every: int = 5_000
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = 2
    """Newest checkpoints kept."""
    log_every: int = 50
    """Steps between lines of metrics."""
    max_skipped: int = 10
    """Steps in a row that may be skipped because their gradient is not finite."""
    stall_timeout: int = 1800
    """Seconds without a finished step after which a process exits."""
    validate_every: int = 5_000
    """Steps between validations; 0: never."""
    validation_split: str = "validation"
    """Split of the data set to validate on, if it has one."""
    validation_images: int = 256
    """Pictures to validate on, from the start of the split."""
    sample_every: int = 5_000
    """Steps between grids of samples; 0: never."""
    sample_images: int = 8
    """Pictures in a grid of samples."""
    prompts: tuple[str, ...] = ()
    """Base only: prompts of the samples; none: captions of the validation split."""
    wandb: str = ""
    """Project at Weights & Biases, whose package must be installed; empty: none."""
    fsdp: int = 1
    """Devices over which parameters and optimiser are sharded; the rest is data parallel."""
    height: int = 1
    """Devices over which the rows of each image are split, for images too large for one."""
    remat: Remat = "none"
    """What the backward pass computes again to save memory: nothing, all but each block's first convolution, or whole
    blocks."""
    scan_blocks: bool = False
    """Compile equal neighbouring blocks once, as a loop."""
    data_threads: int = 2
    """Threads that read and decode pictures, in each process."""
    data_workers: int = 0
    """Further processes that read and decode; for large pictures on many cores."""


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of the cascade."""

    name: str = "base"
    """Name of the stage, an identifier; its directory in the workdir."""
    image_size: int = 64
    """Side of the stage's images in pixels."""
    low_res_size: int | None = None
    """Super-resolution only: image_size of the previous stage; None: a base stage."""
    crop_size: int | None = None
    """Super-resolution only: side of the random crops of training; None: whole images."""
    image_channels: int = 3
    """Channels of the images."""
    control_channels: int = 0
    """Channels of a further image that is concatenated to z_t, such as edges or depth; 0: none."""
    network: NetworkConfig = UNetConfig()
    process: ProcessConfig = ProcessConfig()
    sampling: SamplingConfig = SamplingConfig()
    text: TextConfig = TextConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    lora: LoraConfig = LoraConfig()
    distilled: DistilledConfig = DistilledConfig()
    run: RunConfig = RunConfig()
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type that networks compute in; auto: bfloat16 on accelerators, float32 on CPUs."""
    seed: int = 0
    """Seed of the initial parameters, of the order of the data and of all noise."""
    init_from: str = ""
    """Fine-tuning: DIR or DIR@STEP, the directory of a trained stage whose averaged parameters training starts from, or
    CASCADE or CASCADE/STAGE, a pretrained cascade and its stage; empty: random ones."""

    @property
    def train_size(self) -> int:
        """Side of the images of training, in pixels."""
        return self.crop_size or self.image_size

    @property
    def low_res_factor(self) -> int:
        """Least side in pixels that is a whole number of the previous stage's pixels: 4 for 256 -> 1024."""
        return self.image_size // math.gcd(self.image_size, self.low_res_size)

    @property
    def is_super_resolution(self) -> bool:
        """Whether the stage enlarges the images of a previous stage."""
        return self.low_res_size is not None
