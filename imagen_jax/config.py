"""Frozen, hashable configurations: one `StageConfig` describes one diffusion stage completely.

Everything is checked in one place, `validate`, before anything is loaded or compiled. A configuration
is stored as JSON in every checkpoint, so that a stage can be rebuilt from its directory alone.
"""

import dataclasses
import importlib.util
import types
import typing
from pathlib import Path
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The base network (paper F.1). One tuple entry per resolution, highest first.

    `embedding` is the width of the conditioning vector, as of the text tokens inside the network; ADM
    makes it 4 times the first channels.
    """

    channels: tuple[int, ...] = (512, 1024, 1536, 2048)
    num_res_blocks: tuple[int, ...] = (3, 3, 3, 3)
    attention: tuple[bool, ...] = (False, True, True, True)
    embedding: int = 2048
    head_dim: int = 64
    dropout: float = 0.0

    @property
    def stride(self) -> int:
        return 2 ** (len(self.channels) - 1)


@dataclasses.dataclass(frozen=True)
class EfficientUNetConfig:
    """The super-resolution network (paper F.2). Every level halves the resolution before its blocks."""

    stem_channels: int = 128
    channels: tuple[int, ...] = (128, 256, 512, 1024)
    num_res_blocks: tuple[int, ...] = (2, 4, 8, 8)
    self_attention: tuple[bool, ...] = (False, False, False, True)
    cross_attention: tuple[bool, ...] = (False, False, False, False)
    embedding: int = 512
    num_heads: int = 8
    dropout: float = 0.0

    @property
    def stride(self) -> int:
        return 2 ** len(self.channels)


NETWORKS = {"unet": UNetConfig, "efficient_unet": EfficientUNetConfig}


@dataclasses.dataclass(frozen=True)
class ProcessConfig:
    """The diffusion process and its loss."""

    schedule: Literal["cosine", "linear", "shifted_cosine"] = "cosine"
    prediction: Literal["x", "eps", "v"] = "v"
    loss_weight: Literal["plain", "min_snr", "sigmoid"] = "plain"
    min_snr_gamma: float = 5.0
    min_snr_floor: float = 0.0  # least weight on MSE(x); 1 is the truncated SNR
    sigmoid_bias: float = 2.0
    cond_drop_prob: float = 0.1
    max_aug_level: float = 1.0  # super-resolution only: training levels are uniform in [0, this]


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
    """How a stage is sampled. Every field can be overridden at sampling time."""

    sampler: Literal["ddpm", "ddim", "dpmpp_2m"] = "ddim"
    steps: int = 64
    guidance_scale: float = 5.0  # 1 is off
    threshold: Literal["dynamic", "static", "none"] = "dynamic"
    percentile: float = 0.995
    cap: float | None = None  # upper bound of the dynamic threshold
    aug_level: float = 0.1  # super-resolution only: sigma of the noise added to the low-res image
    ddpm_gamma: float = 0.2  # ddpm only: interpolates the log-variance, 0 lower and 1 upper bound


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """The frozen language model. `length` tokens of each caption reach the network."""

    encoder: str = "all-MiniLM-L6-v2"
    width: int | None = 384  # None: training takes it from the encoder
    length: int = 32
    dtype: Literal["float32", "bfloat16", "int8"] = "float32"  # int8: weights; computes in bfloat16
    output: Literal["last", "penultimate", "pooled"] = "last"  # others than last: CLIP only
    clean_captions: bool = False


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Captioned pictures in the format that scripts/prepare_data.py writes."""

    path: str = "datasets/shapes"
    flip: bool = False  # horizontal flips make captions with "left of" wrong


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and averaging. `decay_steps` 0 keeps the rate constant after the warm-up."""

    optimizer: Literal["adamw", "adafactor", "muon"] = "adamw"
    learning_rate: float = 1e-4
    warmup_steps: int = 10_000
    decay_steps: int = 0
    weight_decay: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0
    batch_size: int = 2048
    accumulation: int = 1
    ema_decay: float = 0.9999


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """What may differ between a run and its continuation: nothing here changes a parameter's value."""

    num_steps: int = 2_500_000
    checkpoint_every: int = 5_000
    keep_checkpoints: int = 2
    log_every: int = 50
    fsdp: int = 1  # devices over which parameters and optimiser are sharded; the rest is data parallel


@dataclasses.dataclass(frozen=True)
class StageConfig:
    """One stage of the cascade."""

    name: str = "base"
    image_size: int = 64
    low_res_size: int | None = None
    image_channels: int = 3
    network: UNetConfig | EfficientUNetConfig = UNetConfig()
    process: ProcessConfig = ProcessConfig()
    sampling: SamplingConfig = SamplingConfig()
    text: TextConfig = TextConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    run: RunConfig = RunConfig()
    compute_dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on accelerators
    seed: int = 0

    @property
    def is_super_resolution(self) -> bool:
        return self.low_res_size is not None


# --- validation ---------------------------------------------------------------------------------


def validate(config: StageConfig) -> StageConfig:
    """Returns `config` unchanged, or raises a ValueError that names the rule, the value and the fix."""
    network, process, sampling, optim, run = (
        config.network, config.process, config.sampling, config.optim, config.run
    )  # fmt: skip
    for prefix, part in {"": config, "process.": process, "text.": config.text, "optim.": optim}.items():
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
    _rule(config.image_channels > 0, "image_channels", "positive", config.image_channels)
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
    for field in ("num_steps", "checkpoint_every", "keep_checkpoints", "log_every", "fsdp"):
        _rule(getattr(run, field) > 0, f"run.{field}", "positive", getattr(run, field))
    return config


def validate_sampling(config: StageConfig, sampling: SamplingConfig) -> SamplingConfig:
    """Checks sampling options against the stage that they are for."""
    _choices("sampling.", sampling)
    _rule(sampling.steps > 0, "steps", "positive", sampling.steps)
    _rule(0 < sampling.percentile <= 1, "percentile", "in (0, 1]", sampling.percentile)
    _rule(sampling.cap is None or sampling.cap >= 1, "cap", "None or at least 1", sampling.cap)
    _rule(0 <= sampling.ddpm_gamma <= 1, "ddpm_gamma", "in [0, 1]", sampling.ddpm_gamma)
    _rule(
        sampling.guidance_scale == 1 or config.process.cond_drop_prob > 0,
        "guidance_scale",
        "1 (off), since the stage was trained with cond_drop_prob 0 and knows no null caption",
        sampling.guidance_scale,
    )
    if config.is_super_resolution:
        top = config.process.max_aug_level
        _rule(
            0 <= sampling.aug_level <= top,
            "aug_level",
            f"in [0, {top}], the levels that the stage is trained on",
            sampling.aug_level,
        )
    return sampling


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


# Fields that files of earlier versions lack, with what those versions did.
_ADDED = {TextConfig: {"dtype": "float32", "output": "last", "clean_captions": False}}


def from_dict(data: dict[str, Any], cls: type = StageConfig) -> Any:
    """Inverse of `to_dict`. Unknown and missing keys are errors that name them."""
    data = _ADDED.get(cls, {}) | data
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


def differences(a: Any, b: Any, prefix: str = "") -> list[str]:
    """Lines `field: a -> b` for every field in which two configurations differ."""
    left, right = to_dict(a), to_dict(b)
    return list(_diff(left, right, prefix))


def _diff(left: dict, right: dict, prefix: str):
    for name in sorted(left.keys() | right.keys()):
        one, two = left.get(name), right.get(name)
        if isinstance(one, dict) and isinstance(two, dict):
            yield from _diff(one, two, f"{prefix}{name}.")
        elif one != two:
            yield f"{prefix}{name}: {one} -> {two}"


# --- presets ------------------------------------------------------------------------------------

_PRESETS = Path(__file__).parent.parent / "configs"


def load_preset(name_or_path: str) -> tuple[StageConfig, ...]:
    """The stages of configs/<name>.py, or of any such file: what its `get_config()` returns, checked."""
    path = Path(name_or_path) if name_or_path.endswith(".py") else _PRESETS / f"{name_or_path}.py"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in _PRESETS.glob("*.py")))
        raise ValueError(f"--preset must be one of {known}, or the path of a .py file; got {name_or_path!r}.")
    spec = importlib.util.spec_from_file_location(f"imagen_jax_preset_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return validate_cascade(tuple(module.get_config()))
