"""Methods with options: frozen dataclasses that are registered by name, and the flat options that follow from them.

A method of any kind (sampler, guidance rule, threshold, spacing) is a frozen dataclass whose fields are its options:

    @SAMPLERS.register("mine")
    @dataclasses.dataclass(frozen=True)
    class Mine(Sampler):
        gain: float = option(0.5, "[0, 1]", flat="mine_gain")
        \"\"\"share of the step that is taken.\"\"\"

Configurations, `sample_cascade` and the command line then know `mine_gain`, with its type, range, default and help.
"""

import ast
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

from imagen_jax import checks
from imagen_jax.checks import Verbatim, require


def option(
    default: Any, interval: Any = None, *, flat: str | None = None, needs: str | None = None, kw_only: bool = False
) -> Any:
    """Return a dataclass field for one option of a method.

    Args:
      default: its value unless given.
      interval: "(low, high]" of numbers, (low, high) of whole numbers, as for `checks.fields`.
      flat: name among the options of all methods, where the field's own name would be ambiguous.
      needs: name of the option without which (0 or None) this one has no effect, and must not be given.
      kw_only: whether it must be given by its name: an option of a base class, whose subclasses may have others by
        position.
    """
    metadata = {"interval": interval, "flat": flat, "needs": needs}
    return dataclasses.field(default=default, metadata=metadata, kw_only=kw_only)


@dataclasses.dataclass(frozen=True)
class Method:
    """Base of all methods: frozen and hashable, so that an instance is a static argument of `jax.jit`."""

    def __post_init__(self) -> None:
        self.check()

    def check(self) -> None:
        """Raise a ValueError, which begins with the field's name, for options of a wrong type or out of range."""
        intervals = {field.name: field.metadata.get("interval") for field in dataclasses.fields(self)}
        checks.fields(self, intervals)


class Option(NamedTuple):
    """One option of a method.

    Attributes:
      flat: name among the options of all methods.
      field: name of the dataclass field.
      hint: its type.
      default: its value unless given.
      needs: flat name of the option without which it has no effect, or None.
      doc: what it does, one line.
    """

    flat: str
    field: str
    hint: Any
    default: Any
    needs: str | None
    doc: str


@functools.cache
def options_of(cls: type) -> dict[str, Option]:
    """Return the options of a method by their flat names."""
    fields = {field.name: field for field in dataclasses.fields(cls)}
    flat = {name: field.metadata.get("flat") or name for name, field in fields.items()}
    hints, docs = checks.hints(cls), {}
    for each in reversed(cls.__mro__):
        docs |= docstrings(each)
    return {
        flat[name]: Option(
            flat[name], name, hints[name], field.default, flat.get(field.metadata.get("needs")), docs.get(name, "")
        )
        for name, field in fields.items()
    }


@functools.cache
def docstrings(cls: type) -> dict[str, str]:
    """Return the docstrings behind a dataclass's own fields, each in one line; none for a class without a file."""
    try:
        (body,) = (node.body for node in ast.parse(textwrap.dedent(inspect.getsource(cls))).body)
    except (OSError, TypeError):
        return {}
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(body, body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
    }


def make(methods: Mapping[str, type], name: str, options: Mapping[str, Any]) -> Any:
    """Return the method that is registered as `name`, with these options of its own by their field names.

    Raises:
      ValueError: there is no such method, or an option is unknown, of a wrong type or out of range.
    """
    cls = methods[name]
    known = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(options) - set(known))
    require(not unknown, f"options of {name}", f"be among {', '.join(known) or 'none'}", Verbatim(", ".join(unknown)))
    return cls(**options)


def make_flat(cls: type, options: Mapping[str, Any], prefix: str = "") -> Any:
    """Return the method of class `cls` with those of the flat `options` that are its own.

    Args:
      cls: of the method.
      options: by their flat names; those of other methods are ignored.
      prefix: of the names in messages.

    Raises:
      ValueError: an option is of a wrong type or out of range; names it by its flat name.
    """
    known = options_of(cls)
    names = {each.field: f"{prefix}{flat}" for flat, each in known.items()}
    try:
        return cls(**{known[name].field: value for name, value in options.items() if name in known})
    except ValueError as error:
        field, _, rest = str(error).partition(" must ")
        raise ValueError(f"{names.get(field, field)} must {rest}") from None
