"""Frozen, hashable configurations: one `StageConfig` describes one diffusion stage completely.

Everything is checked in one place, `validate`, before anything is loaded or compiled. A configuration
is stored as JSON in every checkpoint, so that a stage can be rebuilt from its directory alone.
"""

import dataclasses
import importlib.util
import math
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The base network (paper F.1). Lists have one entry for each resolution, highest first."""

    channels: tuple[int, ...] = (512, 1024, 1536, 2048)
    """Channels at each resolution."""
    num_res_blocks: tuple[int, ...] = (3, 3, 3, 3)
    """Residual blocks at each resolution, on the way down and on the way up."""
    attention: tuple[bool, ...] = (False, True, True, True)
    """Whether blocks of a resolution attend to the image and to the text."""
    embedding: int = 2048
    """Width of the conditioning vector and of the text tokens in the network; ADM uses 4 times the first channels."""
    head_dim: int = 64
    """Channels of each attention head."""
    dropout: float = 0.0
    """Dropout rate inside residual blocks while training, in [0, 1)."""

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channels) - 1)


@dataclasses.dataclass(frozen=True)
class EfficientUNetConfig:
    """The super-resolution network (paper F.2). Lists have one entry for each level; every level halves the resolution
    before its blocks."""

    stem_channels: int = 128
    """Channels of the first convolution, at full resolution."""
    channels: tuple[int, ...] = (128, 256, 512, 1024)
    """Channels at each level."""
    num_res_blocks: tuple[int, ...] = (2, 4, 8, 8)
    """Residual blocks at each level, on the way down and on the way up."""
    self_attention: tuple[bool, ...] = (False, False, False, True)
    """Whether a level attends to the image and to the text after its blocks."""
    cross_attention: tuple[bool, ...] = (False, False, False, False)
    """Whether a level attends to the text alone after its blocks."""
    embedding: int = 512
    """Width of the conditioning vector and of the text tokens inside the network."""
    num_heads: int = 8
    """Heads of each attention layer."""
    dropout: float = 0.0
    """Dropout rate inside residual blocks while training, in [0, 1)."""

    @property
    def stride(self) -> int:
        return 2 ** len(self.channels)


NETWORKS = {"unet": UNetConfig, "efficient_unet": EfficientUNetConfig}


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """The diffusion process and its loss."""

    schedule: str = "cosine"
    """Noise schedule of training, a name in diffusion.schedules.SCHEDULES: cosine, linear, shifted_cosine,
    interpolated_cosine, sigmoid, edm or lognormal."""
    zero_terminal_snr: bool = False
    """Stretch the schedule so that t = 1 is noise alone; not for prediction eps."""
    prediction: Literal["x", "eps", "v", "edm"] = "v"
    """What the network predicts."""
    loss_weight: Literal["plain", "min_snr", "sigmoid"] = "plain"
    """Weight of the loss by log-SNR."""
    min_snr_gamma: float = 5.0
    """min_snr: largest weight on MSE(x)."""
    min_snr_floor: float = 0.0
    """min_snr: least weight on MSE(x); 1 is the truncated SNR."""
    sigmoid_bias: float = 2.0
    """sigmoid: larger weighs fine detail more; about 2 for 64x64, smaller for larger images."""
    cond_drop_prob: float = 0.1
    """Share of captions dropped in training, for classifier-free guidance, in [0, 1); 0: the stage cannot be guided."""
    max_aug_level: float = 1.0
    """Super-resolution only: noise levels of the low-res image are uniform in [0, this] in training."""


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a stage is sampled. Every field can be overridden at sampling time.

    None is the method's own default. An option that the chosen method does not use must stay None.
    """

    sampler: Literal["ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_sde", "heun", "unipc"] = "ddim"
    """Sampling method."""
    steps: int = 64
    """Steps from noise to image."""
    ddpm_gamma: float | None = None
    """ddpm: interpolates the log-variance between its bounds, 0 lower and 1 upper; None: 0.2."""
    eta: float | None = None
    """ddim and dpmpp_2m_sde: share of fresh noise in each step, 0 none and 1 ancestral; None: 0 for ddim, 1 for
    dpmpp_2m_sde."""
    order: int | None = None
    """unipc: order, 1 to 3; None: 2."""
    churn: float | None = None
    """heun: noise added over the whole run; None: 0."""
    churn_min: float | None = None
    """heun: lowest sigma / alpha at which churn adds noise; None: 0.05."""
    churn_max: float | None = None
    """heun: highest sigma / alpha at which churn adds noise; None: 50."""
    churn_noise: float | None = None
    """heun: standard deviation of the noise that churn adds; None: 1.003."""

    schedule: str | None = None
    """Noise schedule; None: the one of training."""
    spacing: Literal["t", "logsnr", "rho", "trailing"] = "t"
    """Spacing of the noise levels: equal steps of time or of log-SNR, EDM's, or trailing on the thousand times of a
    discretely trained network."""
    sigma_min: float | None = None
    """Spacing logsnr and rho: lowest sigma / alpha; None: 0.002."""
    sigma_max: float | None = None
    """Spacing logsnr and rho: highest sigma / alpha; None: 80."""
    rho: float | None = None
    """Spacing rho: EDM's exponent; None: 7."""

    guidance: Literal["cfg", "apg", "cfg++"] = "cfg"
    """Guidance rule: classifier-free, adaptive projected, or CFG++ (with sampler ddim)."""
    guidance_scale: float = 5.0
    """Weight of the caption; 1 is off. For cfg++ in (0, 1], never off."""
    guidance_min_logsnr: float | None = None
    """Guide only at this log-SNR and above; elsewhere the scale is 1. None: no bound."""
    guidance_max_logsnr: float | None = None
    """Guide only at this log-SNR and below; elsewhere the scale is 1. None: no bound."""
    guidance_low: float | None = None
    """Scale of every other step; None: every step has guidance_scale."""
    guidance_low_start: int | None = None
    """Steps before guidance_low begins; None: 0."""
    guidance_rescale: float | None = None
    """Share of the guided estimate brought back to the contrast of the conditional one, in [0, 1]; None: 0."""
    apg_parallel: float | None = None
    """apg: share of the part along the conditional estimate; None: 0."""
    apg_norm: float | None = None
    """apg: largest root-mean-square of the difference; None: no bound."""
    apg_momentum: float | None = None
    """apg: weight of earlier differences, in (-1, 1), usually negative; None: 0."""

    threshold: Literal["dynamic", "static", "none"] = "dynamic"
    """How estimates are kept in range: scaled by a percentile of each image, clipped to [-1, 1], or not at all."""
    threshold_at: Literal["after", "before", "both"] = "after"
    """Threshold after guidance combines the estimates, before it, or both."""
    percentile: float | None = None
    """dynamic: share of the absolute values below the threshold, in (0, 1]; None: 0.995."""
    floor: float | None = None
    """dynamic: lower bound of the threshold; None: 1."""
    cap: float | None = None
    """dynamic: upper bound of the threshold; None: no bound."""

    aug_level: float = 0.1
    """Super-resolution only: sigma of the noise added to the low-res image, from 0 to process.max_aug_level."""
    strength: float = 1.0
    """With an image: the time to start from, in (0, 1]; 1 starts from noise alone."""
    resample: int = 1
    """With a mask: how many times each stretch of steps is gone through, so that the painted part fits the rest."""
    jump: int = 1
    """With a mask: steps in such a stretch."""

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale != 1 or self.guidance == "cfg++"


# option -> (the field that decides, its values that use the option)
_USED_BY = {
    "ddpm_gamma": ("sampler", ("ddpm",)),
    "eta": ("sampler", ("ddim", "dpmpp_2m_sde")),
    "order": ("sampler", ("unipc",)),
    **dict.fromkeys(("churn", "churn_min", "churn_max", "churn_noise"), ("sampler", ("heun",))),
    **dict.fromkeys(("sigma_min", "sigma_max"), ("spacing", ("logsnr", "rho"))),
    "rho": ("spacing", ("rho",)),
    **dict.fromkeys(("apg_parallel", "apg_norm", "apg_momentum"), ("guidance", ("apg",))),
    **dict.fromkeys(("percentile", "floor", "cap"), ("threshold", ("dynamic",))),
}
_NEED_CHURN = ("churn_min", "churn_max", "churn_noise")
_NEED_GUIDANCE = (
    "guidance_min_logsnr", "guidance_max_logsnr", "guidance_low", "guidance_low_start", "guidance_rescale",
    "apg_parallel", "apg_norm", "apg_momentum",
)  # fmt: skip


def override(sampling: SamplingConfig, options: dict[str, Any]) -> SamplingConfig:
    """`sampling` with `options` put over it; what only its former method used goes with that method."""
    plain = lambda value: value.item() if getattr(value, "ndim", None) == 0 else value  # numpy's scalars
    options = {name: plain(value) for name, value in options.items()}
    changed = dataclasses.replace(sampling, **options)
    stale = {
        name: None
        for name, (field, values) in _USED_BY.items()
        if name not in options and field in options and getattr(changed, field) not in values
    }
    turned_off = "guidance_scale" in options and not changed.is_guided
    if turned_off or options.get("guidance") == "cfg++":
        stale |= dict.fromkeys(_NEED_GUIDANCE)
    if turned_off or options.get("threshold") == "none":
        stale["threshold_at"] = "after"
    if turned_off:
        stale["guidance"] = "cfg"
    if options.get("resample") == 1:
        stale["jump"] = 1
    if options.get("churn") == 0:
        stale |= dict.fromkeys(_NEED_CHURN)
    stale = {name: value for name, value in stale.items() if name not in options}
    return dataclasses.replace(changed, **stale)


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
    output: Literal["last", "penultimate", "pooled"] = "last"
    """Which of its layers is read; others than last for CLIP only."""
    clean_captions: bool = False
    """Clean captions of HTML, links and other web residue first, as DeepFloyd IF does."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Captioned pictures: any TFDS data set in ArrayRecord files, as scripts/prepare_data.py writes them."""

    path: str = "datasets/shapes"
    """Directory of the data set."""
    split: str = "train"
    """Split to train on; slices such as train[:1000] work."""
    image_key: str = "image"
    """Name of the feature that holds pictures."""
    caption_key: str = "caption"
    """Name of the feature that holds captions."""
    crop: Literal["center", "random", "aspect"] = "center"
    """What becomes the square: the middle, a square at a random place, or a window of random area and aspect."""
    flip: bool = False
    """Mirror half of the pictures; captions with "left of" become wrong."""


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and averaging."""

    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    """Optimiser."""
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
    ema_decay: float = 0.9999
    """Decay of the averaged parameters, which are sampled from, in [0, 1)."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What may differ between a run and its continuation: nothing here changes a parameter's value."""

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
    """Seconds without a finished step after which a process ends itself."""
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
    """Project at Weights & Biases, which must be installed; empty: none."""
    fsdp: int = 1
    """Devices over which parameters and optimiser are sharded; the rest is data parallel."""
    height: int = 1
    """Devices over which the rows of each image are split, for images too large for one."""
    remat: Literal["none", "save_convs", "full"] = "none"
    """What the backward pass computes again to save memory: nothing, all but each block's first convolution, or whole
    blocks."""
    scan_blocks: bool = False
    """Compile equal neighbouring blocks once, as a loop."""
    data_threads: int = 2
    """Threads that read and decode pictures, in each process."""
    data_workers: int = 0
    """Further processes that do so; for large pictures on many cores."""


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of the cascade."""

    name: str = "base"
    """Name of the stage, an identifier; its directory in the workdir."""
    image_size: int = 64
    """Side of the stage's images in pixels."""
    low_res_size: int | None = None
    """Super-resolution only: image_size of the stage before; None: a base stage."""
    crop_size: int | None = None
    """Super-resolution only: side of the random crops that are trained on; None: whole images."""
    image_channels: int = 3
    """Channels of the images."""
    cond_image_channels: int = 0
    """Channels of a further picture that the network is given beside z_t, such as a sketch; 0: none."""
    network: UNetConfig | EfficientUNetConfig = UNetConfig()
    process: ProcessConfig = ProcessConfig()
    sampling: SamplingConfig = SamplingConfig()
    text: TextConfig = TextConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type that networks compute in; auto: bfloat16 on accelerators, float32 on CPUs."""
    seed: int = 0
    """Seed of the initial parameters, of the order of the data and of all noise."""

    @property
    def train_size(self) -> int:
        """Side of the pictures that training sees."""
        return self.crop_size or self.image_size

    @property
    def low_res_factor(self) -> int:
        """Pixels after which this stage's grid and that of the stage before meet again: 4 for 256 -> 1024."""
        return self.image_size // math.gcd(self.image_size, self.low_res_size)

    @property
    def is_super_resolution(self) -> bool:
        return self.low_res_size is not None


# --- validation ---------------------------------------------------------------------------------


def validate(config: StageConfig) -> StageConfig:
    """Returns `config` unchanged, or raises a ValueError that names the rule, the value and the fix."""
    network, process, sampling, optim, run = (
        config.network, config.process, config.sampling, config.optim, config.run
    )  # fmt: skip
    for prefix, part in {
        "": config,
        "process.": process,
        "text.": config.text,
        "data.": config.data,
        "optim.": optim,
        "run.": run,
    }.items():
        _choices(prefix, part)
    _validate_network(network)
    _rule(config.name.isidentifier(), "name", "an identifier such as base or sr256", config.name)
    _rule(
        config.image_size > 0 and config.image_size % network.stride == 0,
        "image_size",
        f"a positive multiple of the network's total stride {network.stride} "
        f"(the network has {len(network.channels)} levels)",
        config.image_size,
    )
    if isinstance(network, EfficientUNetConfig):
        _rule(
            config.low_res_size is not None,
            "low_res_size",
            "set for a super-resolution stage (an EfficientUNet): the image size of the stage before",
            config.low_res_size,
        )
    if config.low_res_size is not None:
        _rule(
            0 < config.low_res_size < config.image_size,
            "low_res_size",
            f"positive and smaller than image_size {config.image_size}",
            config.low_res_size,
        )
    if config.crop_size is not None:
        _rule(
            config.is_super_resolution,
            "crop_size",
            "None for a stage without low_res_size, which has to see whole images",
            config.crop_size,
        )
        step = math.lcm(network.stride, config.low_res_factor)
        _rule(
            0 < config.crop_size <= config.image_size and config.crop_size % step == 0,
            "crop_size",
            f"a multiple of {step}, so that network and low-res image divide it, up to image_size "
            f"{config.image_size}",
            config.crop_size,
        )
    _rule(config.image_channels > 0, "image_channels", "positive", config.image_channels)
    _rule(config.cond_image_channels >= 0, "cond_image_channels", "at least 0", config.cond_image_channels)
    _rule(
        not (process.zero_terminal_snr and process.prediction == "eps"),
        "process.zero_terminal_snr",
        "False with prediction 'eps', which says nothing about x where there is noise alone: use 'v'",
        process.zero_terminal_snr,
    )
    _rule(0 <= process.cond_drop_prob < 1, "process.cond_drop_prob", "in [0, 1)", process.cond_drop_prob)
    _rule(0 <= process.max_aug_level <= 1, "process.max_aug_level", "in [0, 1]", process.max_aug_level)
    _rule(process.min_snr_gamma > 0, "process.min_snr_gamma", "positive", process.min_snr_gamma)
    _rule(
        0 <= process.min_snr_floor <= process.min_snr_gamma,
        "process.min_snr_floor",
        f"from 0 to min_snr_gamma, {process.min_snr_gamma:g}",
        process.min_snr_floor,
    )
    _rule(config.text.length > 0, "text.length", "positive", config.text.length)
    _rule(config.text.width is None or config.text.width > 0, "text.width", "positive", config.text.width)
    validate_sampling(config, sampling)
    _rule(optim.learning_rate > 0, "optim.learning_rate", "positive", optim.learning_rate)
    _rule(optim.accumulation > 0, "optim.accumulation", "positive", optim.accumulation)
    _rule(
        optim.batch_size > 0 and optim.batch_size % optim.accumulation == 0,
        "optim.batch_size",
        f"a positive multiple of optim.accumulation {optim.accumulation}",
        optim.batch_size,
    )
    _rule(0 <= optim.ema_decay < 1, "optim.ema_decay", "in [0, 1)", optim.ema_decay)
    _rule(
        optim.decay_steps == 0 or optim.decay_steps > optim.warmup_steps >= 0,
        "optim.decay_steps",
        f"0 (constant rate) or more than optim.warmup_steps {optim.warmup_steps}",
        optim.decay_steps,
    )
    for field in (
        "num_steps", "checkpoint_every", "keep_checkpoints", "log_every", "fsdp", "height", "stall_timeout",
        "validation_images", "sample_images",
    ):  # fmt: skip
        _rule(getattr(run, field) > 0, f"run.{field}", "positive", getattr(run, field))
    _rule(
        not run.prompts or not config.is_super_resolution,
        "run.prompts",
        "left out in a super-resolution stage, whose samples enlarge pictures of the data set",
        run.prompts,
    )
    for field in ("max_skipped", "data_threads", "data_workers", "validate_every", "sample_every"):
        _rule(getattr(run, field) >= 0, f"run.{field}", "at least 0", getattr(run, field))
    _rule(
        config.train_size % run.height == 0,
        "run.height",
        f"a divisor of the rows that are trained on, {config.train_size}",
        run.height,
    )
    return config


def validate_sampling(
    config: StageConfig, sampling: SamplingConfig, *, needs_null: bool = True
) -> SamplingConfig:
    """Checks sampling options against the stage that they are for; a weak stage in its place needs no null."""
    _choices("sampling.", sampling)
    for name, hint in typing.get_type_hints(SamplingConfig).items():
        kinds = typing.get_args(hint) or (hint,)
        value = getattr(sampling, name)
        if int in kinds or float in kinds:
            right = int if int in kinds else int | float
            _rule(
                value is None
                or (isinstance(value, right) and not isinstance(value, bool) and math.isfinite(value)),
                name,
                "a whole number" if int in kinds else "a finite number",
                value,
            )
    for name, (field, values) in _USED_BY.items():
        _rule(
            getattr(sampling, name) is None or getattr(sampling, field) in values,
            name,
            f"left out, since {field} {getattr(sampling, field)!r} does not use it (only "
            f"{' and '.join(map(repr, values))} {'does' if len(values) == 1 else 'do'})",
            getattr(sampling, name),
        )
    for name, (expected, holds) in _RANGES.items():
        value = getattr(sampling, name)
        _rule(value is None or holds(value), name, expected, value)
    for name in _NEED_CHURN:
        _rule(
            sampling.churn or getattr(sampling, name) is None,
            name,
            "left out without churn",
            getattr(sampling, name),
        )
    _rule(
        not sampling.churn or sampling.guidance_low is None,
        "guidance_low",
        "left out with churn, which moves between the steps that it counts",
        sampling.guidance_low,
    )
    # With only one of a pair given, the grid or the sampler compares it with its own default.
    for low, high in (
        ("sigma_min", "sigma_max"), ("churn_min", "churn_max"), ("guidance_min_logsnr", "guidance_max_logsnr"),
    ):  # fmt: skip
        bottom, top = getattr(sampling, low), getattr(sampling, high)
        _rule(bottom is None or top is None or bottom < top, low, f"below {high} {top}", bottom)
    _rule(
        sampling.cap is None or sampling.cap >= (sampling.floor or 1),
        "cap",
        "at least floor (1)",
        sampling.cap,
    )
    _rule(
        sampling.jump == 1 or sampling.resample > 1, "jump", "1 unless resample is more than 1", sampling.jump
    )
    _rule(
        sampling.guidance_low_start is None or sampling.guidance_low is not None,
        "guidance_low_start",
        "left out without guidance_low",
        sampling.guidance_low_start,
    )
    is_guided = sampling.is_guided
    _rule(
        not is_guided or not needs_null or config.process.cond_drop_prob > 0,
        "guidance_scale",
        "1 (off), and not for 'cfg++', since the stage was trained with cond_drop_prob 0 and knows no null",
        sampling.guidance_scale,
    )
    for name in _NEED_GUIDANCE:
        _rule(
            is_guided or getattr(sampling, name) is None,
            name,
            "left out, since guidance_scale 1 is no guidance",
            getattr(sampling, name),
        )
    _rule(
        is_guided or sampling.guidance == "cfg",
        "guidance",
        "'cfg' with guidance_scale 1 (off)",
        sampling.guidance,
    )
    _rule(
        is_guided or sampling.threshold_at == "after",
        "threshold_at",
        "'after' without guidance",
        sampling.threshold_at,
    )
    _rule(
        sampling.threshold != "none" or sampling.threshold_at == "after",
        "threshold_at",
        "'after' with threshold 'none'",
        sampling.threshold_at,
    )
    if sampling.guidance == "cfg++":
        _rule(sampling.sampler == "ddim", "sampler", "'ddim' for guidance 'cfg++'", sampling.sampler)
        _rule(
            0 < sampling.guidance_scale <= 1,
            "guidance_scale",
            "in (0, 1] for guidance 'cfg++'",
            sampling.guidance_scale,
        )
        for name in _NEED_GUIDANCE:
            _rule(
                getattr(sampling, name) is None,
                name,
                "left out, since guidance 'cfg++' does not use it",
                getattr(sampling, name),
            )
    for schedule in (config.process.schedule, sampling.schedule):
        _schedule_name(schedule)
    if config.is_super_resolution:
        top = config.process.max_aug_level
        _rule(
            0 <= sampling.aug_level <= top,
            "aug_level",
            f"in [0, {top}], the levels that the stage is trained on",
            sampling.aug_level,
        )
    return sampling


_RANGES: dict[str, tuple[str, Callable[[float], bool]]] = {
    "steps": ("at least 1", lambda value: value >= 1),
    "ddpm_gamma": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "eta": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "order": ("1, 2 or 3", lambda value: value in (1, 2, 3)),
    "churn": ("at least 0", lambda value: value >= 0),
    "churn_min": ("positive", lambda value: value > 0),
    "churn_max": ("positive", lambda value: value > 0),
    "churn_noise": ("positive", lambda value: value > 0),
    "sigma_min": ("positive", lambda value: value > 0),
    "sigma_max": ("positive", lambda value: value > 0),
    "rho": ("positive", lambda value: value > 0),
    "guidance_low_start": ("at least 0", lambda value: value >= 0),
    "guidance_rescale": ("in [0, 1]", lambda value: 0 <= value <= 1),
    "apg_norm": ("positive", lambda value: value > 0),
    "apg_momentum": ("in (-1, 1)", lambda value: -1 < value < 1),
    "percentile": ("in (0, 1]", lambda value: 0 < value <= 1),
    "floor": ("positive", lambda value: value > 0),
    "strength": ("in (0, 1]", lambda value: 0 < value <= 1),
    "resample": ("at least 1", lambda value: value >= 1),
    "jump": ("at least 1", lambda value: value >= 1),
}


def _schedule_name(name: str | None) -> None:
    if name is not None:
        from imagen_jax.diffusion import schedules  # inside, for reading a configuration needs no jax

        _rule(name in schedules.SCHEDULES, "schedule", f"one of {', '.join(schedules.SCHEDULES)}", name)


def validate_cascade(stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
    """Checks every stage and that each super-resolution stage continues the stage before it."""
    _rule(len(stages) > 0, "stages", "at least one", 0)
    for stage in stages:
        validate(stage)
    for before, stage in zip(stages, stages[1:], strict=False):
        _rule(
            stage.low_res_size == before.image_size,
            f"low_res_size of stage {stage.name}",
            f"{before.image_size}, the image_size of the stage {before.name} before it",
            stage.low_res_size,
        )
        _rule(stage.text == before.text, f"text of stage {stage.name}", f"that of {before.name}", stage.text)
    names = [stage.name for stage in stages]
    _rule(len(set(names)) == len(names), "stage names", "distinct", names)
    return stages


def _validate_network(network: UNetConfig | EfficientUNetConfig) -> None:
    levels = len(network.channels)
    _rule(levels > 0, "network.channels", "at least one level", network.channels)
    for field in dataclasses.fields(network):
        value = getattr(network, field.name)
        if isinstance(value, tuple):
            _rule(
                len(value) == levels,
                f"network.{field.name}",
                f"one entry for each of the {levels} levels of network.channels",
                value,
            )
    _rule(min(network.num_res_blocks) > 0, "network.num_res_blocks", "positive", network.num_res_blocks)
    _rule(
        network.embedding > 0 and network.embedding % 4 == 0,
        "network.embedding",
        "a positive multiple of 4",
        network.embedding,
    )
    if isinstance(network, UNetConfig):
        bad = [
            c for c, a in zip(network.channels, network.attention, strict=True) if a and c % network.head_dim
        ]
        _rule(
            not bad,
            "network.channels",
            f"multiples of head_dim {network.head_dim} where attention is on",
            bad,
        )
    else:
        bad = [c for c in network.channels if c % network.num_heads]
        _rule(not bad, "network.channels", f"multiples of num_heads {network.num_heads}", bad)
        both = [s and c for s, c in zip(network.self_attention, network.cross_attention, strict=True)]
        _rule(
            not any(both),
            "network.cross_attention",
            "off where self_attention is on, which reads the text already",
            network.cross_attention,
        )


def _rule(holds: bool, name: str, expected: str, got: Any) -> None:
    if not holds:
        raise ValueError(f"{name} must be {expected}; got {got!r}.")


def _choices(prefix: str, config: Any) -> None:
    """Literal fields hold one of their choices (dataclasses do not check this themselves)."""
    for name, hint in typing.get_type_hints(type(config)).items():
        if typing.get_origin(hint) is Literal and getattr(config, name) not in typing.get_args(hint):
            raise ValueError(
                f"{prefix}{name} must be one of {', '.join(map(repr, typing.get_args(hint)))}; "
                f"got {getattr(config, name)!r}."
            )


# --- JSON ---------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """A JSON-able dict; the network carries its kind."""
    out = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            kind = {cls: {"kind": name} for name, cls in NETWORKS.items()}.get(type(value), {})
            value = kind | to_dict(value)
        out[field.name] = list(value) if isinstance(value, tuple) else value
    return out


def _upgraded(data: dict[str, Any], cls: type) -> dict[str, Any]:
    """A dict of an earlier version with what it lacks, which is what that version did."""
    if cls is SamplingConfig and "spacing" not in data:
        unused = [n for n, (field, values) in _USED_BY.items() if data.get(field) not in values]
        return to_dict(SamplingConfig()) | {name: value for name, value in data.items() if name not in unused}
    added = {
        TextConfig: {"dtype": "float32", "output": "last", "clean_captions": False},
        ProcessConfig: {"zero_terminal_snr": False},
        StageConfig: {"cond_image_channels": 0, "crop_size": None},
        DataConfig: {"split": "train", "image_key": "image", "caption_key": "caption", "crop": "center"},
        RunConfig: {
            "remat": "none",
            "scan_blocks": False,
            "height": 1,
            "max_skipped": 0,
            "data_threads": 2,
            "data_workers": 0,
            "stall_timeout": 1800,
            "validate_every": 0,
            "validation_split": "validation",
            "validation_images": 256,
            "sample_every": 0,
            "sample_images": 8,
            "prompts": (),
            "wandb": "",
        },
    }
    return added.get(cls, {}) | data


def from_dict(data: dict[str, Any], cls: type = StageConfig) -> Any:
    """Inverse of `to_dict`. Unknown and missing keys are errors that name them."""
    data = _upgraded(data, cls)
    hints = typing.get_type_hints(cls)
    unknown, missing = set(data) - set(hints), set(hints) - set(data)
    if unknown or missing:
        raise ValueError(
            f"{cls.__name__} must hold exactly its own keys; unknown: {sorted(unknown)}, missing: {sorted(missing)}. "
            "The file was written by another version of imagen_jax or edited."
        )
    return cls(**{name: _value(value, hints[name]) for name, value in data.items()})


def _value(value: Any, hint: Any) -> Any:
    if isinstance(value, dict):
        if isinstance(hint, types.UnionType):
            value = dict(value)
            hint = NETWORKS[value.pop("kind")]
        return from_dict(value, hint)
    return tuple(value) if isinstance(value, list) else value


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every field by its path, as "optim.batch_size"; values as in `to_dict`."""
    out = {}
    for name, value in (config if isinstance(config, dict) else to_dict(config)).items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def differences(a: Any, b: Any) -> list[str]:
    """Lines `field: a -> b` for every field in which two configurations differ."""
    left, right = flat(a), flat(b)
    names = sorted(left.keys() | right.keys())
    return [f"{n}: {left.get(n)} -> {right.get(n)}" for n in names if left.get(n) != right.get(n)]


# --- presets ------------------------------------------------------------------------------------

_PRESETS = Path(__file__).parent.parent / "configs"


def load_preset(name_or_path: str) -> tuple[StageConfig, ...]:
    """The stages of a preset, checked: what `get_config` of configs/<name>.py, or of any such file, returns.

    A colon and words choose among a preset's variants, as in "base64:1b,paper". Each parameter of its
    `get_config` is a `Literal` of such words, with a default.
    """
    name_or_path, _, variant = name_or_path.partition(":")
    path = Path(name_or_path) if name_or_path.endswith(".py") else _PRESETS / f"{name_or_path}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _PRESETS.glob("*.py")))
        raise ValueError(f"--preset must be one of {known}, or the path of a .py file; got {name_or_path!r}.")
    spec = importlib.util.spec_from_file_location(f"imagen_jax_preset_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return validate_cascade(tuple(module.get_config(**_variant(path.stem, module.get_config, variant))))


def _variant(preset: str, get_config: Callable, words: str) -> dict[str, str]:
    """Words such as "1b,paper" by the parameter whose choices they are among."""
    hints = typing.get_type_hints(get_config)
    choices = {name: typing.get_args(hints[name]) for name in hints if name != "return"}
    chosen = {}
    for word in words.split(",") if words else ():
        names = [name for name, allowed in choices.items() if word in allowed]
        if not names or names[0] in chosen:
            variants = "; ".join(f"{name}: {', '.join(allowed)}" for name, allowed in choices.items())
            raise ValueError(
                f"--preset {preset} must be followed by at most one word each of its variants "
                f"({variants or 'it has none'}); got {words!r}."
            )
        chosen[names[0]] = word
    return chosen
