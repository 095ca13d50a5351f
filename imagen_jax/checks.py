"""Checks of plain values that a user gives, and the form of all errors: `NAME must RULE; got VALUE: FIX.`

This file imports the standard library alone; `arrays` checks arrays.
"""

import dataclasses
import functools
import math
import numbers
import reprlib
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

MAX_SEED = 2**32 - 1  # the largest that both JAX's keys (without 64-bit types) and Grain accept
MAX_STEPS = 10_000  # of sampling; with many more, neighbouring noise levels are equal in float32
MAX_COUNT = 10**9  # of steps, pictures and other counts; 32-bit counters overflow soon after


def require(holds: bool, name: str, rule: str, got: Any = None, fix: str = "") -> None:
    """Raise the ValueError of `error` unless `holds`."""
    if not holds:
        raise error(name, rule, got, fix)


def error(name: str, rule: str, got: Any, fix: str = "") -> ValueError:
    """Return a ValueError with the message `NAME must RULE; got VALUE: FIX.`

    Args:
      name: of the value, as the user knows it.
      rule: what follows "must", such as "be positive".
      got: the value; see `shown`.
      fix: what the user can do; left out if empty.
    """
    return ValueError(f"{name} must {rule}; got {shown(got)}{f': {fix}' if fix else ''}.")


def within(where: Any, error: ValueError) -> ValueError:
    """Return the error of a value inside a file or another value: `WHERE: NAME must RULE; ...`."""
    return ValueError(f"{where}: {error}")


def with_fix(message: str, fix: str) -> ValueError:
    """Return the error of a message that names no fix, with `fix` at its end."""
    return ValueError(f"{message.removesuffix('.')}: {fix}.")


class Verbatim(str):
    """Text that messages show as it is, without quotes."""


def plain(value: Any) -> Any:
    """Return a scalar of numpy or JAX as a Python number; return other values, and tracers, unchanged."""
    try:
        return value.item() if getattr(value, "ndim", None) == 0 else value
    except (AttributeError, TypeError, NotImplementedError):  # tracers and random keys
        return value


def shown(value: Any) -> str:
    """Return any value as one short line of text for a message."""
    if isinstance(value, Verbatim):
        return str(value)
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape") and hasattr(value, "dtype") and getattr(value, "shape", ()) != ():
        return f"{value.dtype} of shape {tuple(value.shape)}"
    if dataclasses.is_dataclass(value) or callable(value):
        return f"a {type(value).__name__}"
    try:
        text = repr(value) if isinstance(value, str | numbers.Number | None) else _SHORT.repr(value)
    except Exception:  # of another library's __repr__, or for an integer with more digits than Python prints
        text = f"a {type(value).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 120 else f"{text[:80]} ... ({len(text)} characters)"


_SHORT = reprlib.Repr()
_SHORT.maxtuple = _SHORT.maxlist = 12
_SHORT.maxstring = _SHORT.maxother = 80


def is_whole(value: Any) -> bool:
    """Whether `value` is an integer of Python or numpy, and not a bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_finite(value: Any) -> bool:
    """Whether `value` is one finite real number of Python or numpy, and not a bool."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer above the largest float
        return False


def whole(name: str, value: Any, low: int = 0, high: int = MAX_COUNT, fix: str = "") -> int:
    """Return `value` as an int from `low` to `high`; raise a ValueError for anything else."""
    require(is_whole(value), name, f"be a whole number from {low} to {high}", value, fix)
    require(value >= low, name, f"be at least {low}", value, fix)
    require(value <= high, name, f"be at most {high}", value, fix)
    return int(value)


def number(name: str, value: Any, interval: str = "(-inf, inf)", fix: str = "") -> float:
    """Return `value` as a float in `interval`, such as "(0, 1]"; raise a ValueError for anything else."""
    low, high, has_low, has_high = _bounds(interval)
    require(is_finite(value), name, "be a finite number", value, fix)
    holds = (value >= low if has_low else value > low) and (value <= high if has_high else value < high)
    rule = f"be in {interval}"
    if low > -math.inf and high == math.inf:
        rule = f"be at least {low:g}" if has_low else f"be above {low:g}" if low else "be positive"
    require(holds, name, rule, value, fix)
    return float(value)


@functools.cache
def _bounds(interval: str) -> tuple[float, float, bool, bool]:
    low, high = interval[1:-1].split(",")
    return float(low), float(high), interval[0] == "[", interval[-1] == "]"


def seed(value: Any, num: int = 1, name: str = "seed") -> int:
    """Return `value` as a seed.

    Args:
      value: a whole number from 0 to 2^32 - 1.
      num: how many seeds are used: value, value + 1, ...
      name: as the user knows it, such as "--seed".

    Raises:
      ValueError: one of the `num` seeds is out of range.
    """
    first = whole(name, plain(value), 0, MAX_SEED)
    rule = f"be at most {MAX_SEED - num + 1}, for {num} seeds are counted up from it to {MAX_SEED} at most"
    require(first + num - 1 <= MAX_SEED, name, rule, value)
    return first


def seeds(values: Any, name: str = "seeds") -> list[int]:
    """Return a sequence of seeds as a list; see `seed`."""
    is_sequence = isinstance(values, list | tuple | range) or getattr(values, "ndim", None) == 1
    require(is_sequence, name, "be a sequence of whole numbers, one for each prompt", values)
    return [seed(value, name=f"{name}[{i}]") for i, value in enumerate(values)]


def text(name: str, value: Any, *, may_be_empty: bool = False) -> str:
    """Return `value` after checking that it is a str, not blank, without null characters and surrogates."""
    require(isinstance(value, str), name, "be a str", value)
    require(may_be_empty or bool(value.strip()), name, "not be empty", value)
    is_text = "\0" not in value and not any("\ud800" <= c <= "\udfff" for c in value)
    require(is_text, name, "be text without null characters and surrogates", value)
    return value


def boolean(name: str, value: Any) -> bool:
    """Return True or False of Python or numpy as a Python bool."""
    value = plain(value)
    require(isinstance(value, bool), name, "be True or False", value)
    return value


def choice(name: str, value: Any, choices: Any) -> Any:
    """Return `value` after checking that it is one of the names `choices`."""
    require(isinstance(value, str) and value in choices, name, f"be one of {', '.join(choices)}", value)
    return value


def instance(name: str, value: Any, kind: type, what: str, fix: str = "") -> Any:
    """Return `value` after checking that it is an instance of `kind`, which the message calls `what`."""
    require(isinstance(value, kind) and not isinstance(value, type), name, f"be {what}", value, fix)
    return value


def fields(config: Any, intervals: Mapping[str, Any], prefix: str = "") -> None:
    """Check each field of a dataclass against its type and its interval.

    Args:
      config: an instance. Fields that are dataclasses themselves are checked for their type alone.
      intervals: by field name, (low, high) for whole numbers and "(low, high]" for floats, also for those in tuples.
        Whole numbers without an interval are from 0 to MAX_COUNT.
      prefix: of the names in messages, such as "optim.".

    Raises:
      ValueError: names the first wrong field.
    """
    for name, hint in hints(type(config)).items():
        _field(f"{prefix}{name}", getattr(config, name), hint, intervals.get(name))


@functools.cache
def hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _field(name: str, value: Any, hint: Any, interval: Any) -> None:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in kinds:
        return
    kind = next(kind for kind in kinds if kind is not type(None))
    if typing.get_origin(kind) is Literal:
        choice(name, value, typing.get_args(kind))
    elif typing.get_origin(kind) is tuple:
        require(isinstance(value, tuple), name, "be a tuple", value)
        for i, entry in enumerate(value):
            _field(f"{name}[{i}]", entry, typing.get_args(kind)[0], interval)
    elif dataclasses.is_dataclass(kind):
        names = " or ".join(each.__name__ for each in kinds)
        require(isinstance(value, kinds), name, f"be {'an' if names[0] in 'AEIO' else 'a'} {names}", value)
    elif kind is bool:
        require(isinstance(value, bool), name, "be True or False", value)
    elif kind is int:
        whole(name, value, *(interval or (0, MAX_COUNT)))
    elif kind is float:
        number(name, value, interval or "(-inf, inf)")
    elif kind is str:
        text(name, value, may_be_empty=interval == "may be empty")
