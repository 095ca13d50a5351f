"""Frozen, hashable configurations: one `StageConfig` describes one diffusion stage completely.

`validation.validate` checks one before anything is loaded or compiled. A configuration is stored as JSON in every
checkpoint, so that a stage can be rebuilt from its directory alone.
"""

import dataclasses
import json
import math
import typing
from pathlib import Path
from typing import Any, Literal

from imagen_jax import files, locations
from imagen_jax.checks import choice, plain, require, shown

MAX_JSON = 16 * 2**20  # bytes of a configuration's file; real ones have a few thousand


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
    """Method that goes from noise to image."""
    steps: int = 64
    """Steps of the sampler from noise to image."""
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
    """With a mask: how many times each group of `jump` steps is run, so that the painted part fits the rest."""
    jump: int = 1
    """With a mask: steps in a group that `resample` repeats."""

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale != 1 or self.guidance == "cfg++"


# option -> (the field that decides, its values that use the option)
USED_BY = {
    "ddpm_gamma": ("sampler", ("ddpm",)),
    "eta": ("sampler", ("ddim", "dpmpp_2m_sde")),
    "order": ("sampler", ("unipc",)),
    **dict.fromkeys(("churn", "churn_min", "churn_max", "churn_noise"), ("sampler", ("heun",))),
    **dict.fromkeys(("sigma_min", "sigma_max"), ("spacing", ("logsnr", "rho"))),
    "rho": ("spacing", ("rho",)),
    **dict.fromkeys(("apg_parallel", "apg_norm", "apg_momentum"), ("guidance", ("apg",))),
    **dict.fromkeys(("percentile", "floor", "cap"), ("threshold", ("dynamic",))),
}
NEED_CHURN = ("churn_min", "churn_max", "churn_noise")
NEED_GUIDANCE = (
    "guidance_min_logsnr", "guidance_max_logsnr", "guidance_low", "guidance_low_start", "guidance_rescale",
    "apg_parallel", "apg_norm", "apg_momentum",
)  # fmt: skip


def override(sampling: SamplingConfig, options: dict[str, Any]) -> SamplingConfig:
    """`sampling` with `options` put over it; what only its former method used goes with that method."""
    options = {name: plain(value) for name, value in options.items()}
    changed = dataclasses.replace(sampling, **options)
    stale = {
        name: None
        for name, (field, values) in USED_BY.items()
        if name not in options and field in options and getattr(changed, field) not in values
    }
    turned_off = "guidance_scale" in options and not changed.is_guided
    if turned_off or options.get("guidance") == "cfg++":
        stale |= dict.fromkeys(NEED_GUIDANCE)
    if turned_off or options.get("threshold") == "none":
        stale["threshold_at"] = "after"
    if turned_off:
        stale["guidance"] = "cfg"
    if options.get("resample") == 1:
        stale["jump"] = 1
    if options.get("churn") == 0:
        stale |= dict.fromkeys(NEED_CHURN)
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
    """Optimiser of the parameters."""
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


# --- JSON ---------------------------------------------------------------------------------------


def to_dict(config: Any) -> dict[str, Any]:
    """`config` (a StageConfig or a part of one) as a JSON-able dict; the network carries its kind."""
    out = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            kind = {cls: {"kind": name} for name, cls in NETWORKS.items()}.get(type(value), {})
            value = kind | to_dict(value)
        elif isinstance(value, tuple):
            value = [plain(entry) for entry in value]
        out[field.name] = plain(value)
    return out


def _upgraded(data: dict[str, Any], cls: type) -> dict[str, Any]:
    """A dict of an earlier version with what it lacks, which is what that version did."""
    if cls is SamplingConfig and "spacing" not in data:
        unused = [n for n, (field, values) in USED_BY.items() if data.get(field) not in values]
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


def from_dict(data: dict[str, Any], cls: type = StageConfig, name: str = "") -> Any:
    """Return the instance of `cls` that `to_dict` made `data` of. `validation.validate` checks what it holds.

    Args:
      data: as from a JSON file.
      cls: a dataclass of this file.
      name: of `data` in messages; the class's name if empty.

    Raises:
      ValueError: `data` is no JSON object, or has other keys than the fields of `cls`.
    """
    name = name or cls.__name__
    require(isinstance(data, dict), name, "be a JSON object", data)
    data = _upgraded(data, cls)
    hints = typing.get_type_hints(cls)
    unknown, missing = sorted(set(data) - set(hints)), sorted(set(hints) - set(data))
    if unknown or missing:
        raise ValueError(
            f"{name} must hold exactly the keys of a {cls.__name__}; unknown: {unknown}, missing: {missing}: the file "
            "was written by another version of imagen_jax or edited."
        )
    return cls(**{key: _value(value, hints[key], key) for key, value in data.items()})


def _value(value: Any, hint: Any, name: str) -> Any:
    if hint == UNetConfig | EfficientUNetConfig:
        kind = value.get("kind") if isinstance(value, dict) else None
        choice(f"{name}.kind", kind, tuple(NETWORKS))
        return from_dict({key: own for key, own in value.items() if key != "kind"}, NETWORKS[kind], name)
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint, name)
    return tuple(value) if isinstance(value, list) and typing.get_origin(hint) is tuple else value


def read_json(file: Path) -> Any:
    """Return what a JSON file holds.

    Raises:
      FileNotFoundError: there is none, in a bucket.
      ValueError: it is no file, is too large, or does not hold JSON; names the file.
    """
    if locations.is_remote(file):
        content = files.read_text(file)
    else:
        content = _bounded(file)
    try:
        return json.loads(content, object_pairs_hook=_distinct)
    except (ValueError, RecursionError) as error:  # of the decoding, of JSON, of numbers and of nesting
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{file} must hold JSON, but cannot be read: {reason}.") from error


def _bounded(file: Path) -> bytes:
    require(file.is_file(), str(file), "be a file", "something else" if file.exists() else "nothing")
    size = file.stat().st_size
    require(size <= MAX_JSON, str(file), f"have at most {MAX_JSON} bytes", size)
    return file.read_bytes()


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) < len(pairs):
        twice = sorted({key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])})
        raise ValueError(f"keys must be distinct; got {shown(twice)} more than once")
    return data


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
