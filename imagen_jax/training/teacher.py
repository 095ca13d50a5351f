"""The teacher of a stage: a trained one with parameters that do not change.

`optim.teacher` of a configuration names it as `init_from` names initial parameters, see `initial`. It is recorded in
config.json and read again at every start of the run; checkpoints do not hold it. It makes the images of the stage that
is trained, from captions of the same encoder; its network may be another one. A stage that is distilled has its
guidance built in.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from imagen_jax import checks, sharding, stage
from imagen_jax.checks import Verbatim, require
from imagen_jax.config import OBJECTIVES, DistilledConfig, StageConfig, flat, override
from imagen_jax.config.validation import validate_sampling
from imagen_jax.training import initial
from imagen_jax.training.objectives import distillation

OPTION = "--optim.teacher"
# Fields in which a stage and its teacher agree, and fields in which they should.
_SAME = ("image_size", "low_res_size", "image_channels", "control_channels", "text.width")
_MEANING = ("text.encoder", "text.output", "text.model_hash")


def resolve(config: StageConfig, directory: Path) -> StageConfig:
    """Return `config` with what config.json records: the teacher as "PLACE@CHECKPOINT", and its guidance.

    A stage that has begun keeps its own teacher and guidance.

    Args:
      config: of the stage; `text.width` is set.
      directory: of the stage, which need not exist yet.

    Raises:
      ValueError: there is no such stage or checkpoint, it makes other images or reads other captions, it cannot be
        guided so or has other steps; or the stage has begun with another teacher.
    """
    begun = initial.begun_config(directory)
    given, scale = config.optim.teacher, config.distilled.guidance_scale
    if begun is not None:
        given = initial.recorded(OPTION, given, begun.optim.teacher, directory)
        scale = begun.distilled.guidance_scale if scale is None else scale
    if not given:
        return config
    found = initial.find(OPTION, given, config.name)
    ours, theirs = flat(config), flat(found.config)
    differing = initial.differences(ours, theirs, _SAME)
    got = Verbatim(f"{found.place} with {'; '.join(differing)}")
    require(not differing, OPTION, f"be a stage that makes what stage {config.name} makes", got, "take another stage")
    initial.warn_of_meaning(OPTION, found.place, initial.differences(ours, theirs, _MEANING))
    config = dataclasses.replace(
        config, optim=dataclasses.replace(config.optim, teacher=f"{found.place}@{found.which}")
    )
    if not config.distilled.steps:
        own, fix = found.config.distilled.steps, "take the stage that it was distilled from"
        rule = f"be a stage that is not distilled, for objective {config.optim.objective!r}"
        require(not own, OPTION, rule, Verbatim(f"{found.place}, of {own} steps"), fix)
        return config
    if scale is None:
        scale = distillation.own_scale(found.config)
    config = dataclasses.replace(config, distilled=dataclasses.replace(config.distilled, guidance_scale=scale))
    _check_steps_and_guidance(config, found.config)
    return config


def load(config: StageConfig, mesh: Mesh) -> stage.Stage | None:
    """Return the teacher that `config`, as from `resolve`, names, each device with its shards; None if there is none.

    Called by every process of a run.

    Raises:
      ValueError: its checkpoint is damaged, or is not there any more.
    """
    if not config.optim.teacher:
        return None
    found = initial.reopen(OPTION, config.optim.teacher, config.name)
    shapes = jax.eval_shape(lambda: stage.init(found.config, jax.random.key(0)))
    shardings = sharding.state_sharding(shapes, mesh)
    shapes = jax.tree.map(lambda s, to: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=to), shapes, shardings)
    return stage.Stage(found.load(shapes), found.config)


def like_the_stage(config: StageConfig, params: Any) -> stage.Stage | None:
    """Return, to plan with, a teacher with the stage's own network; None if its objective learns from none.

    It is guided, if the stage is distilled.

    Args:
      config: of the stage.
      params: its parameters, or their shapes.
    """
    if not getattr(OBJECTIVES[config.optim.objective], "needs_teacher", False):
        return None
    if not config.distilled.steps:
        return stage.Stage(params, config)
    sampling = override(config.sampling, {"guidance_scale": config.distilled.guidance_scale})
    return stage.Stage(params, dataclasses.replace(config, sampling=sampling, distilled=DistilledConfig()))


def _check_steps_and_guidance(config: StageConfig, teacher: StageConfig) -> None:
    """Raise a ValueError for a teacher of other steps, or whose guided estimates are no function of (z_t, logsnr_t)."""
    made, own = config.distilled, teacher.distilled
    if own.steps:
        rule = f"divide into steps of {made.substeps} of the {own.steps} that the teacher was distilled to"
        is_right = made.steps * made.substeps == own.steps
        got = f"{made.steps} x {made.substeps}"
        require(is_right, "--distilled.steps", rule, Verbatim(got), "change it or --distilled.substeps")
        rule = f"be {own.guidance_scale:g}, which the teacher has built in"
        is_right = made.guidance_scale == own.guidance_scale
        require(is_right, "--distilled.guidance-scale", rule, made.guidance_scale, "leave it out")
        return
    try:
        sampling = validate_sampling(teacher, distillation.teacher_sampling(config, teacher))
    except ValueError as error:
        raise checks.within(f"{OPTION} with --distilled.guidance-scale {made.guidance_scale:g}", error) from None
    rule = sampling.method("guidance")
    is_plain = not (rule.has_state or rule.gives_noise_x) and sampling.guidance_low is None
    got = Verbatim("guidance_low" if sampling.guidance_low is not None else f"guidance {sampling.guidance!r}")
    text = "be sampled with guidance that keeps nothing from step to step and gives x_hat alone"
    require(is_plain, OPTION, text, got, "change sampling in the config.json of the teacher")
