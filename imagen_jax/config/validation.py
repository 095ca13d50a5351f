"""Checks of configurations, before anything is loaded, compiled or written.

Every field has a type and a range. The ranges end above what any real stage uses, so that a mistyped number is refused
by name instead of overflowing elsewhere.
"""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable
from typing import Any

from imagen_jax import checks
from imagen_jax.checks import MAX_COUNT, MAX_SEED, MAX_STEPS, Verbatim, require
from imagen_jax.config import distilled
from imagen_jax.config.sampling import GUIDED, SamplingConfig, flat_options, kinds
from imagen_jax.config.serialization import differ
from imagen_jax.config.stage import OBJECTIVES, OPTIMIZERS, StageConfig
from imagen_jax.methods import options_of
from imagen_jax.models.network import NETWORKS
from imagen_jax.storage import locations

# By field: (least, largest) for whole numbers, an interval for floats.
_RANGES: dict[str, dict[str, Any]] = {
    "": {
        **dict.fromkeys(("image_size", "low_res_size", "crop_size"), (1, 2**14)),
        "image_channels": (1, 1024),
        "control_channels": (0, 1024),
        "seed": (0, MAX_SEED),
        "init_from": "may be empty",
    },
    "process.": {
        "min_snr_gamma": "[1e-09, 1e+09]",
        "min_snr_floor": "[0, 1e+09]",
        "sigmoid_bias": "[-50, 50]",
        "v_cap": "[1, 1e+09]",
        "logit_normal_mean": "[-5, 5]",
        "logit_normal_std": "[0.1, 10]",
        "cond_drop_prob": "[0, 1)",
        "max_aug_level": "[0, 1]",
    },
    "text.": {"width": (1, 2**16), "length": (1, 2**16)},
    "data.": {"prior_path": "may be empty"},
    "optim.": {
        "learning_rate": "(0, 1000]",
        "weight_decay": "[0, 1000]",
        **dict.fromkeys(("b1", "b2", "ema_decay"), "[0, 1)"),
        "eps": "(0, 1]",
        **dict.fromkeys(("clip_norm", "prior_weight"), "[0, 1e+09]"),
        **dict.fromkeys(("batch_size", "accumulation"), (1, 2**20)),
        "teacher": "may be empty",
    },
    "lora.": {"rank": (0, 1024), "scale": "[-1000, 1000]"},
    "distilled.": {"steps": (0, MAX_STEPS), "substeps": (1, 256), "guidance_scale": "[-1000, 1000]"},
    "run.": {
        **dict.fromkeys(("num_steps", "checkpoint_every", "keep_checkpoints", "log_every"), (1, MAX_COUNT)),
        "stall_timeout": (1, 365 * 86_400),
        "validation_images": (1, MAX_COUNT),
        "sample_images": (1, 4096),
        **dict.fromkeys(("wandb", "prompts"), "may be empty"),
        **dict.fromkeys(("fsdp", "height"), (1, 2**20)),
        **dict.fromkeys(("data_threads", "data_workers"), (0, 256)),
    },
}


def validate(config: StageConfig) -> StageConfig:
    """Return `config` after checking it.

    Raises:
      ValueError: names the field, the rule, the value and the fix.
    """
    checks.instance("config", config, StageConfig, "a StageConfig")
    for prefix, ranges in _RANGES.items():
        checks.fields(getattr(config, prefix[:-1]) if prefix else config, ranges, prefix)
    locations.local(config.data.path, "data.path")
    locations.local(config.data.prior_path or ".", "data.prior_path")
    locations.local(config.text.encoder, "text.encoder")
    rule, process, optim, run = _rule_of(config), config.process, config.optim, config.run
    rule("name", config.name.isidentifier(), "be an identifier such as base or sr256")
    rule("name", len(config.name) <= 100, "have at most 100 characters, since it names a directory")
    kind = NETWORKS.name_of(config.network)
    config.network.check("network.")
    _validate_inputs(config, kind)
    _validate_sizes(config)
    _schedule_name("process.schedule", process.schedule)
    is_noise = process.zero_terminal_snr and process.prediction == "eps"
    text = "be False with prediction 'eps', which says nothing about x where there is noise alone"
    rule("process.zero_terminal_snr", not is_noise, text, "use 'v'")
    text = f"be from 0 to min_snr_gamma, {process.min_snr_gamma:g}"
    rule("process.min_snr_floor", process.min_snr_floor <= process.min_snr_gamma, text)
    is_noise = config.distilled.steps > 0 and process.prediction == "eps"
    text = "not be 'eps' in a distilled stage, since eps says nothing about x where there is noise alone"
    rule("process.prediction", not is_noise, text, "distil to 'v' or 'x'")
    validate_sampling(config, config.sampling, prefix="sampling.")
    is_project = len(run.wandb) <= 128 and not set(run.wandb) & set("/\\#?%:")
    text = "be the name of a project, of at most 128 characters without any of / \\ # ? % :"
    rule("run.wandb", is_project, text, "leave out the entity (WANDB_ENTITY sets it)")
    text = f"be a multiple of optim.accumulation {optim.accumulation}"
    rule("optim.batch_size", optim.batch_size % optim.accumulation == 0, text)
    text = f"be 0 (constant rate) or more than optim.warmup_steps {optim.warmup_steps}"
    rule("optim.decay_steps", optim.decay_steps == 0 or optim.decay_steps > optim.warmup_steps, text)
    for name, default in (("lora.scale", 1.0), ("lora.targets", "attention")):
        is_used = config.lora.rank > 0 or operator.attrgetter(name)(config) == default
        rule(name, is_used, f"be {default} with lora.rank 0, which has no adapters")
    rule("lora.scale", config.lora.scale != 0, "not be 0, with which adapters have no effect and learn nothing")
    for name, default in (("data.prior_split", "train"), ("optim.prior_weight", 1.0)):
        is_used = config.data.prior_path != "" or operator.attrgetter(name)(config) == default
        rule(name, is_used, f"be {default} without data.prior_path")
    is_used = optim.prior_weight == 1 or optim.objective in ("denoising", "preservation")
    rule("optim.prior_weight", is_used, f"be 1.0 with objective {optim.objective!r}, which does not use it")
    text = "be left out in a super-resolution stage, whose samples enlarge pictures of the data set"
    rule("run.prompts", not run.prompts or not config.is_super_resolution, text)
    text = f"be a divisor of the rows that are trained on, {config.train_size}"
    rule("run.height", config.train_size % run.height == 0, text)
    return config


def _rule_of(config: Any, prefix: str = "") -> Callable[..., None]:
    """Return a function (name, holds, rule, fix) that raises the error of a field such as "run.height"."""

    def rule(name: str, holds: bool, text: str, fix: str = "") -> None:
        require(holds, f"{prefix}{name}", text, operator.attrgetter(name)(config), fix)

    return rule


def validate_for_training(config: StageConfig) -> StageConfig:
    """Return `config` after `validate` and after checking that it can be trained on a data set of captioned pictures.

    One to be distilled is returned with the sampling options of `distilled.with_sampling`.

    Raises:
      ValueError: it is invalid, names an objective or optimiser that is not registered, needs other than RGB
        images or a control image, or has a teacher that its objective does not need, or lacks one.
    """
    config = distilled.with_sampling(checks.instance("config", config, StageConfig, "a StageConfig"))
    validate(config)
    checks.choice("optim.objective", config.optim.objective, OBJECTIVES)
    checks.choice("optim.optimizer", config.optim.optimizer, OPTIMIZERS)
    rule, fix = _rule_of(config), "train with stage.loss and a batch of your own"
    text = "be 3 to train on a data set, whose pictures are RGB"
    rule("image_channels", config.image_channels == 3, text, fix)
    text = "be 0 to train on a data set, which holds no such image"
    rule("control_channels", config.control_channels == 0, text, f'{fix}, which has "control"')
    _validate_distillation(config)
    return config


def _validate_distillation(config: StageConfig) -> None:
    """Raise a ValueError unless the objective, the teacher and the steps to distil to go together."""
    rule, optim, made = _rule_of(config), config.optim, config.distilled
    objective = OBJECTIVES[optim.objective]
    is_apart = config.lora.rank == 0 or not getattr(objective, "has_auxiliary", False)
    text = f"be 0 with objective {optim.objective!r}, which trains all parameters of a second network"
    rule("lora.rank", is_apart, text)
    needs_teacher, needs_steps = (getattr(objective, name, False) for name in ("needs_teacher", "needs_steps"))
    off = {"optim.teacher": ""} if not needs_teacher else {}
    off |= {"distilled.steps": 0, "distilled.substeps": 2, "distilled.guidance_scale": None} if not needs_steps else {}
    for name, value in off.items():
        what = "learn from a teacher" if not needs_teacher else "distil"
        text = f"be left out with objective {optim.objective!r}, which does not {what}"
        rule(name, operator.attrgetter(name)(config) == value, text)
    if not needs_teacher:
        return
    text = f"be given with objective {optim.objective!r}, which learns from a teacher"
    rule("optim.teacher", optim.teacher != "", text, "give the directory of a trained stage")
    if not needs_steps:
        text = f"be given with objective {optim.objective!r}, which preserves what the teacher makes of its captions"
        is_given = config.data.prior_path != "" or optim.objective != "preservation"
        rule("data.prior_path", is_given, text, "give a data set that the teacher was trained on")
        return
    require_steps(config)
    text = f"be at most {MAX_STEPS // max(1, made.steps)} with {made.steps} steps"
    rule("distilled.substeps", made.steps * made.substeps <= MAX_STEPS, text)
    text = "be 'uniform' with a teacher, since each of a few levels of noise is to be learned equally often"
    rule("process.times", config.process.times == "uniform", text)


def require_steps(config: StageConfig) -> None:
    """Raise a ValueError for an objective that distils to a number of steps which is not given."""
    objective = config.optim.objective
    is_right = config.distilled.steps > 0 or not getattr(OBJECTIVES[objective], "needs_steps", False)
    text = f"be given with objective {objective!r}, which learns from a teacher to sample in that many steps"
    _rule_of(config)("distilled.steps", is_right, text)


def validate_sampling(
    config: StageConfig, sampling: SamplingConfig, *, needs_null: bool = True, prefix: str = ""
) -> SamplingConfig:
    """Return `sampling`, or raise a ValueError for options that do not fit each other or the stage.

    Args:
      config: of the stage that they are for.
      sampling: the options.
      needs_null: False with a weak stage in the null caption's place.
      prefix: of the options' names in messages.
    """
    checks.instance("sampling", sampling, SamplingConfig, "a SamplingConfig")
    fields = dataclasses.fields(sampling)
    checks.fields(sampling, {field.name: field.metadata.get("interval") for field in fields}, prefix)
    known, given, used = flat_options(), dict(sampling.options), sampling.used

    def left_out(name: str, unless: bool, why: str) -> None:
        value = getattr(sampling, name)
        require(unless or value is None, f"{prefix}{name}", f"be left out{why}", value)

    rule = _rule_of(sampling, prefix)
    for kind in kinds():
        sampling.check_chosen(kind, prefix)
    distilled.check_sampling(config, sampling, prefix)
    named = {kind: checks.shown(getattr(sampling, kind)) for kind in kinds()}
    for name in given:
        kind, users = known[name].kind, known[name].users
        only = f"{' and '.join(map(repr, users))} {'does' if len(users) == 1 else 'do'}"
        why = f", since {kind} {named[kind]} does not use it (only {only})"
        if not isinstance(getattr(sampling, kind), str):
            why = f" with an instance as {kind}, which has options of its own"
        left_out(name, name in used, why)
    chosen = {kind: sampling.method(kind, prefix) for kind in kinds()}
    sampler, guide = chosen["sampler"], chosen["guidance"]
    for name in given:
        kind = known[name].kind
        needed = options_of(type(chosen[kind]))[name].needs
        left_out(name, needed is None or bool(given.get(needed)), f" without {needed}")
    off_grid = sampler.off_grid
    left_out("guidance_low", not off_grid, f" with {off_grid}, which moves between the steps that it counts")
    left_out("guidance_low", not sampler.has_final, " unless final_logsnr is 20 (off), since it counts steps")
    left_out("guidance_low_start", sampling.guidance_low is not None, " without guidance_low")
    low, high = sampling.guidance_min_logsnr, sampling.guidance_max_logsnr
    rule("guidance_min_logsnr", low is None or high is None or low < high, f"be below guidance_max_logsnr {high}")
    rule("jump", sampling.jump == 1 or sampling.resample > 1, "be 1 unless resample is more than 1")
    text = f"be at most {10 * MAX_STEPS // sampling.steps} with {sampling.steps} steps"
    rule("resample", sampling.steps * sampling.resample <= 10 * MAX_STEPS, text)
    names = (f"{prefix}steps", f"{prefix}strength")
    spacing = chosen["spacing"]
    spacing.check_range(sampling.steps, 1.0, names)
    spacing.check_range(spacing.steps_from(sampling.steps, sampling.strength), sampling.strength, names)
    is_guided = sampling.is_guided
    text = "be 1 (off), and not for 'cfg++', since the stage was trained with cond_drop_prob 0 and knows no null"
    rule("guidance_scale", not is_guided or not needs_null or config.process.cond_drop_prob > 0, text)
    for name in GUIDED:
        left_out(name, is_guided, ", since guidance_scale 1 is no guidance")
        left_out(name, guide.is_off_at_one, f", since guidance {named['guidance']} does not use it")
    rule("guidance", is_guided or sampling.guidance == "cfg", "be 'cfg' with guidance_scale 1 (off)")
    rule("threshold_at", is_guided or sampling.threshold_at == "after", "be 'after' without guidance")
    limits = not chosen["threshold"].is_identity
    rule("threshold_at", limits or sampling.threshold_at == "after", "be 'after' with threshold 'none'")
    if guide.gives_noise_x:
        names = [repr(name) for name, each in kinds()["sampler"].registry.items() if each.reads_noise_x]
        rule("sampler", sampler.reads_noise_x, f"be {' or '.join(names)} for guidance {named['guidance']}")
    why = f"guidance {named['guidance']} is defined there"
    checks.number(f"{prefix}guidance_scale", sampling.guidance_scale, guide.scale_interval, why)
    if sampling.schedule is not None:
        _schedule_name(f"{prefix}schedule", sampling.schedule)
    if config.is_super_resolution:
        top = config.process.max_aug_level
        text = f"be in [0, {top}], the levels that the stage is trained on"
        rule("aug_level", 0 <= sampling.aug_level <= top, text)
    else:
        rule("aug_level", 0 <= sampling.aug_level <= 1, "be in [0, 1]")
    return sampling


def validate_cascade(stages: tuple[StageConfig, ...]) -> tuple[StageConfig, ...]:
    """Return `stages` after checking each, and that each continues the previous one.

    Raises:
      ValueError: a stage is invalid, does not fit the previous one, or has the name of another.
    """
    is_list = isinstance(stages, tuple | list) and len(stages) > 0
    require(is_list, "stages", "be at least one StageConfig", stages)
    for stage in stages:
        validate(stage)
    names = [stage.name for stage in stages]
    require(len(set(names)) == len(names), "stage names", "be distinct", Verbatim(", ".join(names)), "give each once")
    for before, stage in itertools.pairwise(stages):
        name, size = f"low_res_size of stage {stage.name}", stage.low_res_size
        rule = f"be {before.image_size}, the image_size of the stage {before.name} before it"
        require(size == before.image_size, name, rule, size)
        shared = [("image_channels", stage.image_channels, before.image_channels)]
        shared += [(f"text.{name}", own, getattr(before.text, name)) for name, own in vars(stage.text).items()]
        for what, own, expected in sorted(shared, key=lambda each: each[0] == "text.encoder"):  # other reasons first
            rule = f"be that of stage {before.name}, {expected!r}"
            require(not differ(what, own, expected), f"{what} of stage {stage.name}", rule, own)
    return stages


def _validate_inputs(config: StageConfig, kind: str) -> None:
    """Raise a ValueError unless the network takes the inputs of the stage."""
    network, fix = config.network, "give the image size of the stage before"
    is_given = config.is_super_resolution or not network.needs_low_res
    text = f"be set for a super-resolution stage (one with network {kind})"
    require(is_given, "low_res_size", text, config.low_res_size, fix)
    for name, value, off, part in (
        ("low_res_size", config.low_res_size, None, "low_res_noised"),
        ("control_channels", config.control_channels, 0, "control"),
        ("process.cond_drop_prob", config.process.cond_drop_prob, 0, "text"),
    ):
        is_taken = part in network.inputs
        require(is_taken or value == off, name, f"be {off} with network {kind}, which takes no {part}", value)


def _validate_sizes(config: StageConfig) -> None:
    """Raise a ValueError for sizes of images that the network's stride or the previous stage's size does not divide."""
    rule, size, stride = _rule_of(config), config.image_size, config.network.stride
    rule("image_size", size % stride == 0, f"be a positive multiple of the network's total stride {stride}")
    is_smaller = config.low_res_size is None or config.low_res_size < size
    rule("low_res_size", is_smaller, f"be positive and smaller than image_size {size}")
    if config.crop_size is not None:
        text = "be None for a stage without low_res_size, which has to see whole images"
        rule("crop_size", config.is_super_resolution, text)
        step = math.lcm(stride, config.low_res_factor)
        text = f"be a multiple of {step}, so that network and low-res image divide it, up to image_size {size}"
        rule("crop_size", config.crop_size <= size and config.crop_size % step == 0, text)


def _schedule_name(name: str, value: str) -> None:
    from imagen_jax.diffusion import schedules  # inside, for checking a command line needs no jax

    require(value in schedules.SCHEDULES, name, f"be one of {', '.join(schedules.SCHEDULES)}", value)
