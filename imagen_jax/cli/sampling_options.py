"""Sampling options on command lines. They follow from the methods that are registered when a command line is parsed."""

import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.constructors import ConstructorRegistry, StructConstructorSpec, StructFieldSpec

from imagen_jax.checks import Verbatim, number, require, shown
from imagen_jax.config import FlatOption, SamplingConfig, flat_options
from imagen_jax.storage.locations import Location


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """Base of the options of a command that samples from a cascade.

    `with_all_options` adds every option of `SamplingConfig`, as one value for all stages or one for each ("None": the
    stage's own).
    """

    workdir: tuple[Location, ...] = ()
    """Directory of the cascade, as imagen-jax train or export wrote it; or directories of its stages, also of DeepFloyd
    IF in diffusers' layout."""
    pretrained: tuple[str, ...] = ()
    """Instead of --workdir: the name of a pretrained cascade, hf://OWNER/NAME on the Hugging Face hub, or a directory;
    or several, whose stages make one cascade."""

    @property
    def directory(self) -> Path | None:
        """The directory of the cascade; None where its stages are in several, or --pretrained is given."""
        return self.workdir[0] if len(self.workdir) == 1 else None

    def cascade(self) -> str | Path | tuple[str, ...] | tuple[Path, ...]:
        """Return what `load_cascade` takes, after checking that there is something of this name.

        Raises:
          ValueError: neither --workdir nor --pretrained is given, or both, or there is no such cascade.
        """
        if not self.workdir and not self.pretrained:
            raise ValueError(
                "--workdir must be given; got no value: name the directory of the cascade, or a pretrained one with "
                "--pretrained."
            )
        if not self.pretrained:
            return self.directory or self.workdir
        from imagen_jax.stage_dir import pretrained

        got, fix = Verbatim(", ".join(map(shown, self.pretrained))), "give one of the two"
        require(not self.workdir, "--pretrained", "be left out with --workdir", got, fix)
        fix = "its options are in its config.json, and --workdir takes its directory"
        require(not getattr(self, "best", False), "--best", "be left out with --pretrained", got, fix)
        for place in self.pretrained:
            pretrained.check(place, "--pretrained")
        return self.pretrained[0] if len(self.pretrained) == 1 else self.pretrained

    def default_output(self, name: str) -> Path:
        """Return the directory for results where --output is not given: in the workdir, else in the current one."""
        return Path(name) if self.directory is None else self.directory / name

    def given(self) -> dict[str, tuple]:
        """Return the values of the sampling options that were given."""
        return {name: value for name in flat_options() if (value := getattr(self, name))}

    def sampling(self) -> dict[str, Any]:
        """Return the sampling options that were given: name -> one value, or a tuple of one per stage."""
        return {name: value[0] if len(value) == 1 else value for name, value in self.given().items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AdaptedOptions(SamplingOptions):
    """Base of the options of a command that samples from a cascade with adapters."""

    adapter: tuple[str, ...] = ()
    """Adapters to apply, each a file or directory as imagen-jax export --adapter writes it, with :WEIGHT behind it to
    weaken or strengthen it."""

    def adapters(self) -> dict[str, float]:
        """Return the weight of each adapter by its path."""
        found = {}
        for given in self.adapter:
            path, _, weight = given.rpartition(":")
            try:
                path, weight = (path, float(weight)) if path else (given, 1.0)
            except ValueError:  # the colon is part of a path
                path, weight = given, 1.0
            require(path not in found, "--adapter", "name each adapter once", path)
            found[path] = number(f"--adapter {given}", weight)
        return found


def with_all_options(kind: type) -> type:
    """Return the dataclass `kind` with all sampling options if it is a `SamplingOptions`, else as it is."""
    if not issubclass(kind, SamplingOptions):
        return kind
    own, fields = {field.name for field in dataclasses.fields(kind)}, []
    for name, option in flat_options().items():
        require(name not in own, f"sampling option {name}", "have another name than an option of this command", name)
        hint = Annotated[tuple[option.hint | None, ...], _described(option)]
        fields.append((name, hint, dataclasses.field(default=())))
    return dataclasses.make_dataclass(kind.__name__, fields, bases=(kind,), frozen=True, kw_only=True)


def _described(option: FlatOption) -> Any:
    kinds = [kind for kind in typing.get_args(option.hint) if kind is not type(None)] or [option.hint]
    metavar = "|".join(kinds) if typing.get_origin(option.hint) is typing.Literal else kinds[0].__name__.upper()
    text, has_default, default = option.doc.partition(" None: ")
    text = text.rstrip(";") + ("." if has_default and text.endswith(";") else "")
    if option.users:
        text, has_default, default = f"{option.whose}{option.doc}", True, option.default
    return tyro.conf.arg(
        metavar=f"{metavar} [...]",
        help=text,
        help_behavior_hint=f"(default: the stage's own{', else ' * bool(has_default)}{default.rstrip('.')})",
    )


def hints() -> dict[str, Any]:
    """Return the types of the options of a `SamplingConfig`."""
    return {name: each.hint | None if each.users else each.hint for name, each in flat_options().items()}


def tyro_rules() -> ConstructorRegistry:
    """Return tyro's rule for a `SamplingConfig` inside another dataclass: its options as they are now."""
    registry = ConstructorRegistry()

    @registry.struct_rule
    def sampling(info: Any) -> StructConstructorSpec | None:
        if info.type is not SamplingConfig:
            return None
        default = info.default if isinstance(info.default, SamplingConfig) else SamplingConfig()
        fields = []
        for name, hint in hints().items():
            option = flat_options()[name]
            without = f"; None: {option.default}" if option.users else ""
            text = f"{option.whose}{option.doc.rstrip('.')}{without}." if option.users else option.doc
            fields.append(StructFieldSpec(name, hint, getattr(default, name), text))
        return StructConstructorSpec(SamplingConfig, tuple(fields))

    return registry
