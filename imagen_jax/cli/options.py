"""Checks of a command line's options against the types of dataclass fields, with error messages of one line.

tyro parses the options afterwards. Its own messages are boxes of several lines without the nearest option and the
choices in order, and of two values for an option it takes the last one silently.
"""

import dataclasses
import difflib
import functools
import operator
import re
import types
import typing
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from imagen_jax import checks
from imagen_jax.checks import Verbatim
from imagen_jax.cli import sampling_options
from imagen_jax.config import SamplingConfig
from imagen_jax.methods import docstrings as docstrings
from imagen_jax.registry import Registry
from imagen_jax.storage.locations import Location


class Field(NamedTuple):
    """An option.

    Attributes:
      hint: its type.
      required: whether it must be given.
      is_flag: whether it is given without a value.
      default: dataclasses.MISSING where there is none.
    """

    hint: Any
    required: bool
    is_flag: bool
    default: Any


def fields(options: Any, prefix: str = "") -> dict[str, Field]:
    """Return the options of a dataclass, or of an instance of one and of its nested dataclasses, by name.

    Names are as a user types them, without the leading dashes: "optim.learning-rate".
    """
    hints = type_hints(options if isinstance(options, type) else type(options))
    found = {}
    for field in dataclasses.fields(options):
        name = prefix + field.name.replace("_", "-")
        value = getattr(options, field.name, dataclasses.MISSING)
        if isinstance(value, SamplingConfig):
            known = sampling_options.hints().items()
            found |= {f"{name}.{n.replace('_', '-')}": Field(h, False, False, getattr(value, n)) for n, h in known}
            continue
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            found |= fields(value, f"{name}.")
            continue
        is_required = value is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        hint = hints[field.name]
        found[name] = Field(hint, is_required, hint is bool and not is_required, value)
    return found


def type_hints(kind: type) -> dict[str, Any]:
    """Return the types of a dataclass's fields, with a Literal of the names that are registered now in place of each
    Annotated[str, registry]."""
    return {name: _with_names(hint) for name, hint in typing.get_type_hints(kind, include_extras=True).items()}


def _with_names(hint: Any) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        registry = next((mark for mark in hint.__metadata__ if isinstance(mark, Registry)), None)
        return _with_names(arguments[0]) if registry is None else Literal[tuple(registry)]
    if origin is tuple:
        return tuple[tuple(map(_with_names, arguments))]
    return functools.reduce(operator.or_, map(_with_names, arguments)) if _is_union(hint) else hint


def names(parsed: Any) -> frozenset[str]:
    """Return the names of the options of what a command line was parsed into: a dataclass, or a tuple of some.

    Those of a stage are typed without the name of its field, `config`.
    """
    return frozenset(
        name.removeprefix("config.")
        for part in (parsed if isinstance(parsed, tuple) else (parsed,))
        if dataclasses.is_dataclass(part)
        for name in fields(part)
    )


def as_typed(message: str, known: Collection[str]) -> str:
    """Return a message that begins with a field's name with the names of options as the user types them.

    "optim.batch_size must be a multiple of optim.accumulation 5" becomes "--optim.batch-size must be a multiple of
    --optim.accumulation 5". A name without a dot may also be the end of a single option's. After the first word only
    names with a dot or an underscore are replaced.
    """

    def typed(match: re.Match) -> str:
        name = match[0].replace("_", "-")
        return f"--{name}" if name in known else match[0]

    first = re.match(r"[a-z]\w*(\.\w+)*(?=( and \w+)?(\[\d+\])? must )", message)
    if first is None:
        return message
    name = first[0].replace("_", "-")
    found = [name] if name in known else [option for option in known if option.endswith(f".{name}")]
    if len(found) != 1:
        return message
    rest = re.sub(r"(?<![\w./'\"-])[a-z]+[._]\w+(\.\w+)*(?![\w/'\"-]|\.\w)", typed, message[first.end() :])
    return f"--{found[0]}{rest}"


def asks_for_help(args: list[str]) -> bool:
    """Whether -h or --help is among the arguments."""
    return "-h" in args or "--help" in args


def given(args: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Yield (option, its values) in order; ("", values) for values before any option."""
    name, values = "", []
    for arg in args:
        if arg.startswith("--") and len(arg) > 2:
            if name or values:
                yield name, values
            name, has_value, value = arg[2:].partition("=")
            name, values = name.replace("_", "-"), [value] if has_value else []
        else:
            values.append(arg)
    if name or values:
        yield name, values


def check(args: list[str], known: Mapping[str, Field]) -> None:
    """Raise a ValueError for the first wrong option in `args`.

    Args:
      args: of a command line.
      known: the options of the command, by name.
    """
    counts = Counter()
    name = ""
    for arg in args:  # one that begins with a dash is none of the values, but after "="
        if arg.startswith("--"):
            name = arg[2:].partition("=")[0]
        elif name in known and not known[name].is_flag and re.match(r"-[^\d.\s]\S*$", arg):
            fix = f"write --{name}={arg}" + (f", or use --{name}-file" if f"{name}-file" in known else "")
            raise checks.error(f"--{name}", "have values that do not begin with a dash", arg, fix)
    for name, values in given(args):
        field, is_negated = known.get(name), False
        if field is None:
            head, dot, last = name.rpartition(".")
            if last.startswith("no-"):
                field, is_negated = known.get(head + dot + last[3:]), True
            if field is None or not field.is_flag:
                raise _unknown(name, values, known)
            name = head + dot + last[3:]
        counts[name] += 1
        if counts[name] > 1:
            raise ValueError(f"--{name} must be given once; got it twice: give all its values behind one.")
        if field.is_flag:
            if values:
                raise ValueError(
                    f"--{name} must stand without a value; got {_shown(values)}: --{name} turns it on, "
                    f"--{_negated(name)} off."
                )
        elif is_negated or (wrong := _wrong(field, values)) is not None:
            wrong = values if is_negated else wrong
            raise ValueError(
                f"--{name} must be {rule(field.hint)}; got {_shown(wrong)}{_nearest(field.hint, wrong)}."
            )
    missing = [name for name, field in known.items() if field.required and not counts[name]]
    if missing:
        names = " and ".join(f"--{name}" for name in missing)
        raise ValueError(f"{names} must be given; got no value: --help lists all options.")


def _negated(name: str) -> str:
    head, dot, last = name.rpartition(".")
    return f"{head}{dot}no-{last}"


def _shown(values: list[str]) -> str:
    return " ".join(map(repr, values)) if values else "no value"


def _unknown(name: str, values: list[str], known: Mapping[str, Field]) -> ValueError:
    help = "--help lists all options"
    if not name:
        return checks.error("options", "begin with two dashes", Verbatim(_shown(values)), help)
    ends = {option.rpartition(".")[2]: option for option in reversed(known)}
    near = difflib.get_close_matches(name, known, 1, 0.6) or [
        ends[end] for end in difflib.get_close_matches(name.rpartition(".")[2], ends, 1, 0.7)
    ]
    fix = f"did you mean --{near[0]}? " if near else ""
    return checks.error("options", "be those of this command", Verbatim(f"--{name}"), fix + help)


def _nearest(hint: Any, values: list[str]) -> str:
    choices = list(_choices(hint))
    near = [close for value in values for close in difflib.get_close_matches(value, choices, 1, 0.6)]
    return f" (did you mean {near[0]}?)" if near else ""


def _choices(hint: Any) -> Iterator[str]:
    if typing.get_origin(hint) is Literal:
        yield from map(str, typing.get_args(hint))
    for part in typing.get_args(hint):
        if typing.get_origin(part) is not None or isinstance(part, type):
            yield from _choices(part)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _wrong(field: Field, values: list[str]) -> list[str] | None:
    """Return those of `values` that the option does not take, all if their number is wrong; None if it takes them."""
    kind = typing.get_args(field.hint)[0] if _is_variadic(field.hint) else None
    if kind is not None and values:
        return [value for value in values if not _accepts(kind, [value])] or None
    if kind is not None:  # no value is accepted to replace a default that has some
        return None if field.default else values
    is_empty_text = values == [""] and field.default != ""
    return None if _accepts(field.hint, values) and not is_empty_text else values


def _is_variadic(hint: Any) -> bool:
    return typing.get_origin(hint) is tuple and typing.get_args(hint)[-1] is ...


def _accepts(hint: Any, values: list[str]) -> bool:
    """Whether the words after an option form a value of this type."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return _accepts(arguments[0], values)
    if _is_union(hint):
        return any(_accepts(part, values) for part in arguments)
    if typing.get_origin(hint) is tuple:
        if arguments[-1] is ...:
            return all(_accepts(arguments[0], [value]) for value in values)
        return len(values) == len(arguments) and all(
            _accepts(part, [value]) for part, value in zip(arguments, values, strict=True)
        )
    if len(values) != 1:
        return False
    if hint is type(None):
        return values == ["None"]
    if typing.get_origin(hint) is Literal:
        return values[0] in map(str, arguments)
    if hint is bool:
        return values[0] in ("True", "False")
    if hint is Path:
        return values[0] != ""
    try:
        hint(values[0])
    except (ValueError, TypeError):
        return False
    return True


_KINDS = {
    int: "whole number",
    float: "number",
    str: "text",
    Path: "path",
    Location: "path or URL",
    bool: "True or False",
}


def rule(hint: Any) -> str:
    """Return what an option of this type must be, in words: "a whole number or None"."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Annotated:
        return rule(arguments[0])
    if _is_union(hint):
        return " or ".join(map(rule, (*(a for a in arguments if a is not type(None)), *_none(arguments))))
    if typing.get_origin(hint) is tuple:
        if arguments[-1] is ...:
            return rule(arguments[0])
        return f"{len(arguments)} {_KINDS[arguments[0]]}s"
    if hint is type(None):
        return "None"
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    kind = _KINDS.get(hint, getattr(hint, "__name__", str(hint)))
    return kind if hint is bool else f"a {kind}" if hint is not str else "a text that is not empty"


def _none(arguments: tuple) -> tuple:
    return tuple(part for part in arguments if part is type(None))
