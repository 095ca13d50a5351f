"""Command lines from dataclasses. A user's error is one line on stderr and exit status 2."""

import contextlib
import dataclasses
import io
import logging
import sys
import threading
import typing
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import tyro
from tqdm import tqdm

from imagen_jax import signals
from imagen_jax.cli import commands, options
from imagen_jax.config import SamplingConfig, StageConfig
from imagen_jax.config.presets import load_preset
from imagen_jax.storage import locations


def _given(parsed: Any) -> dict[str, Any]:
    """The sampling options that were given: name -> one value, or a tuple of one per stage."""
    values = {field.name: getattr(parsed, field.name) for field in dataclasses.fields(SamplingConfig)}
    return {name: value[0] if len(value) == 1 else value for name, value in values.items() if value}


def _sampling_options() -> type:
    hints = typing.get_type_hints(SamplingConfig)
    described = options.docstrings(SamplingConfig)
    fields = []
    for field in dataclasses.fields(SamplingConfig):
        kinds = [kind for kind in typing.get_args(hints[field.name]) if kind is not type(None)]
        is_choice = typing.get_origin(hints[field.name]) is typing.Literal
        metavar = "|".join(kinds) if is_choice else (kinds or [hints[field.name]])[0].__name__.upper()
        text, has_own, without = described[field.name].partition(" None: ")
        shown = tyro.conf.arg(
            metavar=f"{metavar} [...]",
            help=text.rstrip(";") + ("." if has_own and text.endswith(";") else ""),
            help_behavior_hint=f"(default: the stage's own{', else ' * bool(has_own)}{without.rstrip('.')})",
        )
        hint = Annotated[tuple[hints[field.name] | None, ...], shown]
        fields.append((field.name, hint, dataclasses.field(default=())))
    return dataclasses.make_dataclass(
        "SamplingOptions", fields, frozen=True, kw_only=True, namespace={"sampling": _given}
    )


# Every field of SamplingConfig as an option of one value for all stages or one for each ("None": the stage's own);
# `.sampling()` returns those that were given.
SamplingOptions = _sampling_options()


def run(main: Callable[[Any], int | None], parse: Callable[[], Any]) -> None:
    """Parses the command line and runs `main` on it; exits with main's status."""
    name = Path(sys.argv[0]).name
    warnings.showwarning = lambda message, *_: tqdm.write(f"{name}: warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # orbax and tfds explain themselves at length, and what they raise comes up for every array
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    sys.unraisablehook = _without_closed_loops
    threading.excepthook = lambda args: print(
        f"{name} (in the background): {' '.join(str(args.exc_value).split())[:300]}", file=sys.stderr
    )
    known: frozenset[str] = frozenset()
    try:
        parsed = parse()
        known = options.names(parsed)
        status = main(parsed)
        compilation = sys.modules.get("imagen_jax.compilation")
        if compilation is not None and compilation.has_abandoned_compilation():
            signals.exit_immediately(status)
        sys.exit(status)
    except (ValueError, OSError, FloatingPointError) as error:
        signals.wait_for_signals()
        print(f"{name}: {options.as_typed(' '.join(str(error).split()), known)}", file=sys.stderr)
        _leave(2)
    except RuntimeError as error:
        processes = sys.modules.get("imagen_jax.processes")
        if processes is None or not processes.is_process_lost(error):
            raise
        reason = " ".join(str(error).split())[:200]
        print(
            f"{name}: another process of the run has ended or cannot be reached ({reason}): see its log; the same "
            "command continues",
            file=sys.stderr,
        )
        _leave(processes.STATUS_PROCESS_LOST)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130)


def _without_closed_loops(unraisable: Any) -> None:
    """Where one array of a checkpoint fails, orbax closes the event loop under tensorstore's threads; what that
    raises in each of them would bury the error itself."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _leave(status: int) -> None:
    """Exits; one of several processes of a run does not wait for the others."""
    jax = sys.modules.get("jax")  # a program that has not imported it has joined nothing
    if jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
        from imagen_jax import processes

        processes.abort(status)
    sys.exit(status)


def parse(kind: type, description: str, args: list[str] | None = None) -> Any:
    """An instance of the dataclass `kind` from the command line; what is wrong there becomes one line."""
    args = sys.argv[1:] if args is None else args
    if options.asks_for_help(args):  # whatever else is there may be incomplete
        return _tyro(_described(kind), commands.examples_as_typed(description), ["--help"])
    options.check(args, options.fields(kind))
    return _located(_tyro(kind, description, args))


def _described(kind: type) -> type:
    """A dataclass for --help: the options of `kind` itself before those that it inherits, each default said once."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), options.docstrings(kind)
    fields = []
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in texts):
        hint, text = hints[field.name], texts.get(field.name)
        if text is not None:
            is_told = field.default is None and "default" in text
            hint = Annotated[hint, tyro.conf.arg(help=text, help_behavior_hint="" if is_told else None)]
        fields.append((field.name, hint, dataclasses.field(default=field.default)))
    return dataclasses.make_dataclass(kind.__name__, fields, kw_only=True, frozen=True)


def _located(parsed: Any) -> Any:
    """The dataclass with a path for each `locations.Location`; raises a ValueError for places that cannot be used."""
    changed = {}
    for name, hint in typing.get_type_hints(type(parsed)).items():
        kinds, value, option = {hint, *typing.get_args(hint)}, getattr(parsed, name), f"--{name.replace('_', '-')}"
        if value is not None and locations.Location in kinds:
            changed[name] = locations.location(value, option)
        elif Path in kinds:
            for path in value if isinstance(value, tuple) else (value,) * (value is not None):
                locations.local(path, option)
    return dataclasses.replace(parsed, **changed) if changed else parsed


def parse_stage(kind: type, description: str, args: list[str] | None = None) -> tuple[Any, StageConfig]:
    """The dataclass `kind` (which has `preset` and `stage`, "" for the first) and the preset's stage, with overrides
    such as --optim.learning-rate applied to it. --text.encoder brings its own width.

    --help shows the values of the preset, if one is given that can be read.
    """
    args = sys.argv[1:] if args is None else args
    wants_help = options.asks_for_help(args)
    own = options.fields(kind)
    named = {name: values for name, values in options.given(args) if name in own}
    if not wants_help:  # the rest waits for the preset, which says what options the network has
        options.check([word for name, values in named.items() for word in (f"--{name}", *values)], own)
    try:
        stage = _stage(*(" ".join(named.get(name, [""])) for name in ("preset", "stage")))
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
        bases=(_described(kind) if wants_help else kind,),
        kw_only=True,
        frozen=True,
    )
    parsed = _tyro(both, commands.examples_as_typed(description), ["--help"] if wants_help else args)
    text = parsed.config.text
    if text.encoder != stage.text.encoder and text.width == stage.text.width:
        text = dataclasses.replace(text, width=None)
    return parsed, dataclasses.replace(parsed.config, text=text)


def _stage(preset: str, name: str) -> StageConfig:
    """The stage of that name in a preset, "" for the first."""
    stages = {stage.name: stage for stage in load_preset(preset)}
    if (name or next(iter(stages))) not in stages:
        raise ValueError(f"--stage must be one of {', '.join(stages)} in preset {preset}; got {name!r}.")
    return stages[name or next(iter(stages))]


def _tyro(kind: type, description: str, args: list[str]) -> Any:
    """Calls tyro; turns the box that it prints for what `options.check` does not see into one ValueError."""
    printed = io.StringIO()
    markers = (tyro.conf.AvoidSubcommands, tyro.conf.HelptextFromCommentsOff)
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, description=description, args=args, config=markers)
    except SystemExit as stop:
        if not stop.code:
            raise
        words = [line.strip("│╭╰╮╯─ \n") for line in printed.getvalue().splitlines()]
        raise ValueError(
            " ".join(word for word in words if word) or "the options could not be read"
        ) from None
