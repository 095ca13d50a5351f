"""Stages that are distilled to a few steps: how they are sampled, and what is refused."""

import dataclasses

from imagen_jax.checks import MAX_STEPS, Verbatim, is_whole, require
from imagen_jax.config.sampling import SamplingConfig, kinds, override
from imagen_jax.config.stage import DistilledConfig, StageConfig

_METHODS = {"sampler": "ddim", "spacing": "t", "guidance": "cfg"}


def with_sampling(config: StageConfig) -> StageConfig:
    """Return `config`, if it is distilled, with the sampling options that it is made for in place of others.

    Threshold, aug_level and strength stay. An invalid configuration is returned as it is.
    """
    made = config.distilled
    is_right = isinstance(made, DistilledConfig) and isinstance(config.sampling, SamplingConfig)
    if not is_right or not is_whole(made.steps) or not 0 < made.steps <= MAX_STEPS:
        return config
    fixed = _METHODS | {"steps": made.steps, "guidance_scale": 1.0}
    fixed |= dict.fromkeys(("schedule", "eta", "final_logsnr"))
    return dataclasses.replace(config, sampling=override(config.sampling, fixed))


def check_sampling(config: StageConfig, sampling: SamplingConfig, prefix: str = "") -> None:
    """Raise a ValueError for options that a distilled stage cannot be sampled with.

    Args:
      config: of the stage.
      sampling: the options, of right types and with known methods.
      prefix: of their names in messages.
    """
    steps = config.distilled.steps
    if not steps:
        return
    what, fix = describe(config), "leave it out"
    rule = lambda name, holds, text: require(
        holds, f"{prefix}{name}", f"be {text} for {what}", getattr(sampling, name), fix
    )
    rule("guidance_scale", sampling.guidance_scale == 1, "1 (off)")
    rule("steps", sampling.steps == steps, str(steps))
    for kind, name in _METHODS.items():
        rule(kind, getattr(sampling, kind) in (name, kinds()[kind].registry[name]()), repr(name))
    rule("eta", not sampling.eta, "0")
    rule("schedule", sampling.schedule is None, "None, the one of training,")
    off = kinds()["sampler"].base.final_logsnr
    rule("final_logsnr", sampling.final_logsnr in (None, off), f"{off:g} (off)")
    on_grid = steps * sampling.strength
    rule("strength", abs(on_grid - round(on_grid)) < 1e-6 <= on_grid, f"a multiple of 1/{steps}")


def check_unguided(config: StageConfig, name: str, is_given: bool) -> None:
    """Raise a ValueError if a distilled stage is given what only guidance uses, such as a negative prompt."""
    fix = "leave it out, or sample its teacher"
    is_right = not config.distilled.steps or not is_given
    require(is_right, name, f"be left out for {describe(config)}", Verbatim("one"), fix)


def describe(config: StageConfig) -> str:
    """Return what a distilled stage is, for messages."""
    made = config.distilled
    scale = "" if made.guidance_scale is None else f" with guidance_scale {made.guidance_scale:g}"
    return f"stage {config.name}, which is distilled to {made.steps} unguided steps from a teacher{scale}"
