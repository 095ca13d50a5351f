"""Shows tyro the choices of options that name a registered method, also in dataclasses within others."""

import dataclasses
import typing

from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from imagen_jax.cli.options import type_hints
from imagen_jax.methods import docstrings

CONSTRUCTORS = ConstructorRegistry()  # a context for calls of tyro.cli


@CONSTRUCTORS.struct_rule
def _dataclass_with_names(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Return the fields of a dataclass that has names of registered methods; None: tyro's own rules hold."""
    if not dataclasses.is_dataclass(info.type) or not isinstance(info.default, info.type):
        return None
    found = type_hints(info.type)
    if found == typing.get_type_hints(info.type):
        return None
    texts = docstrings(info.type)
    fields = (
        StructFieldSpec(field.name, found[field.name], getattr(info.default, field.name), texts.get(field.name))
        for field in dataclasses.fields(info.type)
    )
    return StructConstructorSpec(instantiate=info.type, fields=tuple(fields))
