"""Icon sets of Iconify (https://iconify.design/docs/types/iconify-json.html): icons, code points and licences."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from imagen_jax.prepare.icons import captions, codes, packages
from imagen_jax.prepare.quarantine import LeftOut

# SPDX identifiers of licences that allow any use of changed artwork.
LICENCES = (
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "ISC", "MIT", "MIT-0", "Unlicense", "Zlib",
)  # fmt: skip
# How captions name the styles of sets; other sets are named by their prefix, with blanks for hyphens.
STYLES = {
    "noto": "noto", "noto-v1": "noto v1", "fluent-emoji-flat": "fluent flat", "fluent-emoji": "fluent",
    "fxemoji": "fxemoji",
}  # fmt: skip
FILES = ("icons.json", "info.json", "chars.json", "package.json")
MAX_BODY = 2**20  # characters of the SVG of an icon
MAX_SIDE = 2**14  # units of the SVG
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_FLIPS = ("hFlip", "vFlip", "rotate")


@dataclasses.dataclass(frozen=True)
class Icon:
    """An icon: `body` is the content of its <svg>, `box` the view box (left, top, width, height)."""

    name: str
    body: str
    box: tuple[float, float, float, float]
    other_names: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class IconSet:
    """A set of icons of one style; `codes` maps names to code points, as far as the set says so."""

    prefix: str
    about: dict[str, str]
    icons: list[Icon]
    codes: dict[str, str]
    left_out: list[LeftOut]

    @property
    def style(self) -> str:
        return STYLES.get(self.prefix, self.prefix.replace("-", " "))


def read(path: Path, accepted: Sequence[str] = ()) -> IconSet:
    """Read a set from a .tgz file or a directory.

    Args:
      path: the package `@iconify-json/NAME`.
      accepted: SPDX identifiers of licences that are accepted beside `LICENCES`.

    Raises:
      ValueError: it is damaged, of another format, or of a licence that is not accepted.
    """
    found = packages.read("--icons", path, FILES)
    content = found.get("icons.json")
    icons = _dict(content, "icons")
    prefix = content.get("prefix") if icons else None
    if not isinstance(prefix, str) or not _NAME.fullmatch(prefix):
        got = "no icons.json" if content is None else "an icons.json without a prefix in lower case and icons by name"
        raise ValueError(
            f"--icons must be icon sets in Iconify's format; got {path} with {got}: fetch one with "
            "npm pack @iconify-json/NAME."
        )
    about = _about(found, content)
    licence = about["licence"]
    if not licence or licence not in (*LICENCES, *accepted):
        fix = f"--accept-licence {licence} allows it" if licence else "use another set"
        raise ValueError(
            f"--icons must have a licence of {', '.join(LICENCES)}; got {path} with {licence or 'none stated'}: {fix}."
        )
    left_out: list[LeftOut] = []
    read_icons = _icons(prefix, content, icons, left_out)
    chars = found.get("chars.json")
    named: dict[str, str] = {}
    for key, name in (chars if isinstance(chars, dict) else {}).items():
        code = codes.normalized(key)
        if code and captions.words(name):
            named.setdefault(name, code)
    return IconSet(prefix, {"prefix": prefix, **about}, read_icons, named, left_out)


def _dict(content: Any, key: str) -> dict:
    value = content.get(key) if isinstance(content, dict) else None
    return value if isinstance(value, dict) else {}


def _about(found: dict[str, Any], content: dict) -> dict[str, str]:
    """Return version, licence and author of a set, "" where it does not say so."""
    info = found.get("info.json")
    info = info if isinstance(info, dict) else _dict(content, "info")
    licence, author = _dict(info, "license"), _dict(info, "author")
    package = found.get("package.json")
    version = package.get("version") if isinstance(package, dict) else None
    values = {
        "title": info.get("name"),
        "version": version,
        "licence": licence.get("spdx"),
        "licence_url": licence.get("url"),
        "author": author.get("name"),
        "author_url": author.get("url"),
    }
    return {key: captions.words(value) for key, value in values.items()}


def _icons(prefix: str, content: dict, icons: dict, left_out: list[LeftOut]) -> list[Icon]:
    other_names: dict[str, list[str]] = {}
    aliases = _dict(content, "aliases")
    for name in aliases:
        where = f"{prefix}:{name}"
        chain, parent = _parents(name, aliases, icons)
        if not parent:
            left_out.append(LeftOut(where, "unusable icon", "an alias of no icon"))
        elif any(alias.get("hidden") for alias in chain):
            left_out.append(LeftOut(where, "hidden icon", "withdrawn from the set"))
        elif any(alias.keys() & {"left", "top", "width", "height"} for alias in chain):
            left_out.append(LeftOut(where, "unusable icon", f"a part of {parent}"))
        elif any(alias.get(key) for alias in chain for key in _FLIPS):
            left_out.append(LeftOut(where, "mirrored icon", f"of {parent}"))
        elif chain and _NAME.fullmatch(name):
            other_names.setdefault(parent, []).append(name)
    found = []
    for name, icon in icons.items():
        where = f"{prefix}:{name}"
        if isinstance(icon, dict) and icon.get("hidden"):
            left_out.append(LeftOut(where, "hidden icon", "withdrawn from the set"))
            continue
        reason, box = _unusable(name, icon), None
        if not reason:
            box = _box(icon, content)
            reason = "" if box else f"its view box must be numbers up to {MAX_SIDE}, width and height above 0"
        if reason:
            left_out.append(LeftOut(where, "unusable icon", reason))
        else:
            found.append(Icon(name, icon["body"], box, tuple(other_names.get(name, ()))))
    return found


def _parents(name: str, aliases: dict, icons: dict) -> tuple[list[dict], str]:
    """Return the aliases from `name` to an icon, and that icon's name, "" if there is none."""
    chain: list[dict] = []
    while name not in icons:
        alias = aliases.get(name)
        parent = alias.get("parent") if isinstance(alias, dict) else None
        if not isinstance(parent, str) or len(chain) == len(aliases):  # the latter: a circle
            return chain, ""
        chain.append(alias)
        name = parent
    return chain, name


def _unusable(name: str, icon: Any) -> str:
    if not _NAME.fullmatch(name) or len(name) > 200:
        return "its name must be lower-case words joined by hyphens"
    body = icon.get("body") if isinstance(icon, dict) else None
    if not isinstance(body, str) or not body.strip():
        return "it has no body"
    return "" if len(body) <= MAX_BODY else f"its body has {len(body)} characters, more than {MAX_BODY}"


def _box(icon: dict, content: dict) -> tuple[float, float, float, float] | None:
    """Return the view box of an icon; None if it is not one of finite numbers within MAX_SIDE."""
    defaults = {"left": 0, "top": 0, "width": 16, "height": 16}  # of Iconify
    values = [icon.get(key, content.get(key, default)) for key, default in defaults.items()]
    if not all(type(value) in (int, float) and abs(value) <= MAX_SIDE for value in values):
        return None
    left, top, width, height = map(float, values)
    return (left, top, width, height) if width > 0 and height > 0 else None
