"""Options that name a registered method have its names as their choices."""

import dataclasses
from typing import Annotated

import pytest
import tyro

from imagen_jax.cli.choices import CONSTRUCTORS
from imagen_jax.registry import Registry

THINGS = Registry("thing")
THINGS.register("one")(int)
THINGS.register("two")(int)


@dataclasses.dataclass(frozen=True)
class Inner:
    thing: Annotated[str, THINGS] = "one"
    """which thing."""


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()


def test_names_are_choices_also_of_parts(capsys):
    def parse(*words):
        with CONSTRUCTORS:
            return tyro.cli(Outer, args=words, default=Outer())

    assert parse("--inner.thing", "two") == Outer(Inner("two"))
    with pytest.raises(SystemExit):
        parse("--help")
    assert "{one,two}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        parse("--inner.thing", "three")
