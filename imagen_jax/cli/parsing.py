"""Command lines parsed by tyro into dataclasses; what is wrong with one becomes a ValueError of one line."""

import contextlib
import dataclasses
import io
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from imagen_jax.cli import choices, commands, options, stages
from imagen_jax.cli.help import described
from imagen_jax.cli.sampling_options import tyro_rules, with_all_options
from imagen_jax.config import StageConfig
from imagen_jax.storage import locations


def parse(kind: type, description: str, args: list[str]) -> Any:
    """Return an instance of the dataclass `kind` as the arguments of a command line say, or print --help.

    Raises:
      ValueError: one line; an option does not exist, lacks a value, has a wrong one, or is given twice.
    """
    own, kind = kind, with_all_options(kind)
    if options.asks_for_help(args):  # whatever else is there may be incomplete
        return _tyro(described(kind, own), commands.examples_as_typed(description), ["--help"])
    options.check(args, options.fields(kind))
    return _located(_tyro(kind, description, args))


def split_flags(args: list[str], kind: type) -> tuple[list[str], Any]:
    """Return the arguments without the flags of the dataclass `kind`, and an instance of it as they say.

    Raises:
      ValueError: one line; a flag is given twice or has a value.
    """
    known, rest, own = options.fields(kind), [], []
    taken = rest
    for arg in args:
        if arg.startswith("--"):
            name = arg[2:].partition("=")[0].replace("_", "-")
            taken = own if name.removeprefix("no-") in known else rest
        (rest if arg == "-h" else taken).append(arg)
    options.check(own, known)
    values = {name.removeprefix("no-").replace("-", "_"): not name.startswith("no-") for name, _ in options.given(own)}
    return rest, kind(**values)


def _located(parsed: Any) -> Any:
    """Return the dataclass with a path for each `locations.Location`; a place that cannot be used is a ValueError."""
    changed = {}
    for name, hint in typing.get_type_hints(type(parsed)).items():
        kinds, value, option = {hint, *typing.get_args(hint)}, getattr(parsed, name), f"--{name.replace('_', '-')}"
        places = value if isinstance(value, tuple) else (value,) * (value is not None)
        if locations.Location in kinds:
            found = tuple(locations.location(place, option) for place in places)
            changed[name] = found if isinstance(value, tuple) else next(iter(found), None)
        elif Path in kinds:
            for path in places:
                locations.local(path, option)
    return dataclasses.replace(parsed, **changed) if changed else parsed


def _stages_of_preset(values: dict[str, str]) -> Sequence[StageConfig]:
    return stages.of_preset(values.get("preset", ""))


def parse_stage(
    kind: type,
    description: str,
    args: list[str],
    stages_of: Callable[[dict[str, str]], Sequence[StageConfig]] = _stages_of_preset,
) -> tuple[Any, StageConfig]:
    """Return an instance of the dataclass `kind`, and the stage that it names, changed as the arguments ask for.

    Args:
      kind: has the fields `preset` and `stage` ("": the first stage).
      description: printed by --help, which shows the values of the preset, if one is given that can be read.
      args: options of `kind`, and fields of the stage, such as --optim.learning-rate. With another --text.encoder
        and no --text.width, the width is None: that of the encoder; so is its hash.
      stages_of: returns the stages to choose from, given the values of those options of `kind` that are in `args`.

    Raises:
      ValueError: one line; as `parse`, or there is no such preset or stage.
    """
    from imagen_jax.training import objectives, optim  # noqa: F401  their registered names are choices

    wants_help = options.asks_for_help(args)
    own = options.fields(kind)
    named = {name: values for name, values in options.given(args) if name in own}
    if not wants_help:  # the rest waits for the preset, which says what options the network has
        options.check([word for name, values in named.items() for word in (f"--{name}", *values)], own)
    try:
        values = {name: " ".join(words) for name, words in named.items()}
        stage = _stage(stages_of(values), values)
    except ValueError as error:
        if not wants_help:
            raise
        stage = StageConfig()
        hint = error if named.get("preset") else "With --preset NAME they are those of that preset."
        description += f"\n\nThe defaults below are those of no preset. {hint}"
    if not wants_help:
        options.check(args, own | options.fields(stage))
    config = dataclasses.field(default=stage)
    both = dataclasses.make_dataclass(
        "Options",
        [("config", Annotated[StageConfig, tyro.conf.arg(name="")], config)],
        bases=(described(kind, kind) if wants_help else kind,),
        kw_only=True,
        frozen=True,
    )
    parsed = _tyro(both, commands.examples_as_typed(description), ["--help"] if wants_help else args)
    text = parsed.config.text
    if text.encoder != stage.text.encoder:
        of_encoder = {"width": text.width, "model_hash": text.model_hash}
        unset = {name: None for name, value in of_encoder.items() if value == getattr(stage.text, name)}
        text = dataclasses.replace(text, **unset)
    return parsed, dataclasses.replace(parsed.config, text=text)


def _stage(found: Sequence[StageConfig], values: dict[str, str]) -> StageConfig:
    """Return the stage that --stage names; without it, the first."""
    named = {stage.name: stage for stage in found}
    name = values.get("stage") or next(iter(named))
    if name not in named:
        place = f"preset {values['preset']}" if values.get("preset") else f"{values.get('workdir')}"
        raise ValueError(f"--stage must be one of {', '.join(named)} in {place}; got {name!r}.")
    return named[name]


def _tyro(kind: type, description: str, args: list[str]) -> Any:
    """Call tyro; what it prints in a box about an error that `options.check` does not find becomes a ValueError."""
    printed = io.StringIO()
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff)
    try:
        with contextlib.redirect_stderr(printed), choices.CONSTRUCTORS, tyro_rules():
            return tyro.cli(kind, description=description, args=args, config=markers)
    except SystemExit as stop:
        if not stop.code:
            raise
        words = [line.strip("│╭╰╮╯─ \n") for line in printed.getvalue().splitlines()]
        reason = " ".join(word for word in words if word) or "no reason is known"
        raise ValueError(f"options must be readable; they are not ({reason}): --help lists all options.") from None
