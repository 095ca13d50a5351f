"""What --help shows of a dataclass."""

import dataclasses
import typing
from typing import Annotated

import tyro

from imagen_jax.cli import logs, options


def described(kind: type, own: type) -> type:
    """Return a dataclass for --help: the fields of `kind`, first those of the class `own`, and those of all commands.

    A default that the description of a field tells is not shown again.
    """
    texts = {name: text for base in reversed(own.__mro__) for name, text in options.docstrings(base).items()}
    fields = [*_fields(kind, texts), *_fields(logs.Options, options.docstrings(logs.Options))]
    return dataclasses.make_dataclass(kind.__name__, fields, kw_only=True, frozen=True)


def _fields(kind: type, texts: dict[str, str]) -> list[tuple]:
    """Return the fields of a dataclass for `make_dataclass`, those with a text first."""
    shown = typing.get_type_hints(kind, include_extras=True)  # with what tyro shows of sampling options
    hints, fields = options.type_hints(kind) | {name: shown[name] for name in shown if name not in texts}, []
    for field in sorted(dataclasses.fields(kind), key=lambda field: field.name not in texts):
        hint, text = hints[field.name], texts.get(field.name)
        if text is not None:
            is_told = field.default is None and "default" in text
            hint = Annotated[hint, tyro.conf.arg(help=text, help_behavior_hint="" if is_told else None)]
        fields.append((field.name, hint, dataclasses.field(default=field.default)))
    return fields
