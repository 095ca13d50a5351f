"""Options that name a registered method: their choices are the names registered when the command line is parsed."""

import dataclasses
import typing
from typing import Any, Literal

from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec, StructTypeInfo

from imagen_jax.registry import Registry

CONSTRUCTORS = ConstructorRegistry()  # used as a context around tyro.cli


def hints(cls: type) -> dict[str, Any]:
    """Return the type of each field of a dataclass; `Annotated[str, registry]` as the `Literal` of registered names."""
    found = typing.get_type_hints(cls)
    for name, hint in typing.get_type_hints(cls, include_extras=True).items():
        for registry in getattr(hint, "__metadata__", ()):
            if isinstance(registry, Registry) and registry:
                found[name] = Literal[tuple(registry)]
    return found


@CONSTRUCTORS.struct_rule
def _dataclass_with_names(info: StructTypeInfo) -> StructConstructorSpec | None:
    """Show tyro the choices of the fields that are names; None: it finds the fields of any other class itself."""
    if not dataclasses.is_dataclass(info.type) or dataclasses.is_dataclass(type(info.default)) is False:
        return None
    found = hints(info.type)
    if found == typing.get_type_hints(info.type):
        return None
    from imagen_jax.cli.options import docstrings

    texts = docstrings(info.type)
    fields = (
        StructFieldSpec(field.name, found[field.name], getattr(info.default, field.name), texts.get(field.name))
        for field in dataclasses.fields(info.type)
    )
    return StructConstructorSpec(instantiate=info.type, fields=tuple(fields))
