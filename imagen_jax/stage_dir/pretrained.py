"""Pretrained cascades by name: those installed with the package, those in further directories, those on the hub.

A name is that of a directory in imagen_jax/pretrained, or in one of the directories that the environment variable
IMAGEN_JAX_PRETRAINED lists (separated as in PATH), which come first.
"""

import difflib
import os
from pathlib import Path

from imagen_jax.checks import Verbatim, require, shown
from imagen_jax.stage_dir import exported, hub
from imagen_jax.stage_dir.directory import CONFIG_FILE
from imagen_jax.storage import files, locations

VARIABLE = "IMAGEN_JAX_PRETRAINED"
INSTALLED = Path(__file__).parents[1] / "pretrained"


def directories() -> dict[str, Path]:
    """Return the directory of each pretrained cascade on this machine by its name, in alphabetical order."""
    places = [Path(place) for place in os.environ.get(VARIABLE, "").split(os.pathsep) if place]
    found = {file.parent.name: file.parent for place in (INSTALLED, *reversed(places)) for file in _configs(place)}
    return dict(sorted(found.items()))


def _configs(place: Path) -> list[Path]:
    try:
        return list(place.glob(f"*/{CONFIG_FILE}"))
    except OSError:  # no permission, or a file system that is gone
        return []


def resolve(place: str | Path, option: str = "workdir") -> Path:
    """Return the directory of a cascade.

    Args:
      place: the name of a pretrained cascade, hf://OWNER/NAME[@REVISION] on the Hugging Face hub, or the directory
        itself. "./NAME" and `Path("NAME")` are directories even where there is a pretrained cascade NAME.
      option: how the user named it, for messages.

    Raises:
      ValueError: it is a URL or a text that cannot be used.
    """
    if isinstance(place, str) and place.startswith(hub.SCHEME):
        return hub.download(place, option)
    known = directories().get(place) if isinstance(place, str) else None
    return locations.location(place, option) if known is None else known


def is_name(place: str | Path) -> bool:
    """Whether `resolve` reads a place as a name rather than as the path of a directory."""
    return isinstance(place, str) and (place.startswith(hub.SCHEME) or place in directories())


def check(place: str, option: str) -> None:
    """Check that a name or directory that a user gave as an option is that of a cascade.

    Raises:
      ValueError: it is neither; lists the names.
    """
    known = directories()
    near = difflib.get_close_matches(place, known, 1)
    got = Verbatim(f"{shown(place)}{f' (did you mean {near[0]}?)' if near else ''}")
    rule = f"be one of {', '.join(known)}, " if known else "be "
    rule += f"the directory of a cascade or {hub.SCHEME}OWNER/NAME"
    require(files.exists(resolve(place, option)), option, rule, got)


def describe() -> str:
    """Return a line for each pretrained cascade: its name, what it draws, and which captions it knows."""
    lines = []
    for name, directory in directories().items():
        try:
            card = exported.read(directory).card
            told = " ".join(" ".join([card.summary, card.captions]).split())
        except (AttributeError, ValueError, OSError):  # not an exported cascade, or damaged: an error when it is used
            told = ""
        lines.append(f"  {name:12} {told}".rstrip())
    return "\n".join(lines)
