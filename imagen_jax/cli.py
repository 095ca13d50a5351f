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

from imagen_jax.config import SamplingConfig, StageConfig
from imagen_jax.presets import load_preset


def _given(options: Any) -> dict[str, Any]:
    """The sampling options that were given: name -> one value, or a tuple of one per stage."""
    values = {field.name: getattr(options, field.name) for field in dataclasses.fields(SamplingConfig)}
    return {name: value[0] if len(value) == 1 else value for name, value in values.items() if value}


def _sampling_options() -> type:
    hints = typing.get_type_hints(SamplingConfig)
    fields = [
        (field.name, tuple[hints[field.name] | None, ...], dataclasses.field(default=()))
        for field in dataclasses.fields(SamplingConfig)
    ]
    return dataclasses.make_dataclass(
        "SamplingOptions", fields, frozen=True, kw_only=True, namespace={"sampling": _given}
    )


# Every field of SamplingConfig as an option of one value for all stages or one for each ("None": the stage's own);
# `.sampling()` returns those that were given.
SamplingOptions = _sampling_options()


def run(main: Callable[[Any], int | None], parse: Callable[[], Any]) -> None:
    """Parses the command line and runs `main` on it; exits with main's status."""
    name = Path(sys.argv[0]).name
    warnings.showwarning = lambda message, *_: print(f"{name}: warning: {message}", file=sys.stderr)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    # orbax and tfds explain themselves at length, and what they raise comes up for every array
    for logger in ("absl", "asyncio"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    sys.unraisablehook = _without_closed_loops
    threading.excepthook = lambda args: print(
        f"{name} (in the background): {' '.join(str(args.exc_value).split())[:300]}", file=sys.stderr
    )
    try:
        sys.exit(main(parse()))
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"{name}: {' '.join(str(error).split())}", file=sys.stderr)
        _leave(2)
    except RuntimeError as error:
        parallel = sys.modules.get("imagen_jax.parallel")
        if parallel is None or not parallel.lost_another(error):
            raise
        reason = " ".join(str(error).split())[:200]
        print(
            f"{name}: another process of the run has ended or cannot be reached ({reason}): see its log; the same "
            "command continues",
            file=sys.stderr,
        )
        _leave(parallel.LOST)
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
        from imagen_jax import parallel

        parallel.leave(status)
    sys.exit(status)


def parse(options: type, description: str, args: list[str] | None = None) -> Any:
    """An instance of the dataclass `options` from the command line; its errors become one line."""
    return _one_line(
        tyro.cli, options, description=description, args=args, config=(tyro.conf.AvoidSubcommands,)
    )


def parse_stage(options: type, description: str) -> tuple[Any, StageConfig]:
    """`options` (which has `preset` and `stage`, "" for the first) and the preset's stage, with overrides
    such as --optim.learning-rate applied to it. --text.encoder brings its own width."""
    fields = dataclasses.fields(options)
    chosen = [(f.name, f.type, f) for f in fields if f.name in ("preset", "stage")]
    peek = dataclasses.make_dataclass("Peek", [(n, t, _copy(f)) for n, t, f in chosen])
    args = [arg for arg in sys.argv[1:] if arg not in ("-h", "--help")]
    first, _ = _one_line(tyro.cli, peek, args=args, return_unknown_args=True)
    stages = {stage.name: stage for stage in load_preset(first.preset)}
    name = first.stage or next(iter(stages))
    if name not in stages:
        raise ValueError(
            f"--stage must be one of {', '.join(stages)} in preset {first.preset}; got {first.stage!r}."
        )
    config = dataclasses.field(default=stages[name])
    both = dataclasses.make_dataclass(
        "Options",
        [("config", Annotated[StageConfig, tyro.conf.arg(name="")], config)],
        bases=(options,),
        kw_only=True,
        frozen=True,
    )
    parsed = parse(both, description)
    preset, text = stages[name].text, parsed.config.text
    if text.encoder != preset.encoder and text.width == preset.width:
        text = dataclasses.replace(text, width=None)
    return parsed, dataclasses.replace(parsed.config, text=text)


def _copy(field: dataclasses.Field) -> dataclasses.Field:
    return dataclasses.field(default=field.default, default_factory=field.default_factory, kw_only=True)


def _one_line(function: Callable, *args, **kwargs) -> Any:
    """Calls tyro; turns the box that it prints for a wrong option into one ValueError."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return function(*args, **kwargs)
    except SystemExit as stop:
        if not stop.code:
            raise
        words = [line.strip("│╭╰╮╯─ \n") for line in printed.getvalue().splitlines()]
        raise ValueError(
            " ".join(word for word in words if word) or "the options could not be read"
        ) from None
