"""Names of icons joined by code point: the same subject in several sets, and its name in words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from imagen_jax.prepare.icons import captions, codes, packages
from imagen_jax.prepare.icons.sets import Icon, IconSet

_PICTOGRAPHS = range(0x1F000, 0x1FB00)  # code points whose Unicode names sets may use
_FILLINGS = re.compile(
    r"\b(black|white|heavy)\b"
)  # in Unicode's names filled, outlined and bold, not colours


@dataclasses.dataclass(frozen=True)
class Keywords:
    """Names and keywords of emoji by code point, of npm's package emojibase-data; empty without it."""

    labels: dict[str, str] = dataclasses.field(default_factory=dict)
    tags: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    about: dict[str, str] = dataclasses.field(default_factory=dict)


def read_keywords(path: Path) -> Keywords:
    """Read the package emojibase-data; raise ValueError if it is damaged or another."""
    found = packages.read("--keywords", path, ("package.json", "en/data.json"))
    labels: dict[str, str] = {}
    tags: dict[str, tuple[str, ...]] = {}
    data = found.get("en/data.json")
    for entry in data if isinstance(data, list) else ():
        _add_entry(entry, (), labels, tags)
    if not labels:
        raise ValueError(
            f"--keywords must be npm's package emojibase-data; got {path} without labels in en/data.json: fetch it "
            "with npm pack emojibase-data."
        )
    package = found.get("package.json")
    package = package if isinstance(package, dict) else {}
    about = {key: str(package.get(key, ""))[:500] for key in ("name", "version", "license")}
    about["licence"] = about.pop("license")
    return Keywords(labels, tags, about)


def _add_entry(entry: Any, inherited: tuple[str, ...], labels: dict, tags: dict) -> None:
    """Add the label and tags of an entry; those of its skin tones have the tags of the entry."""
    if not isinstance(entry, dict):
        return
    code, label = codes.normalized(str(entry.get("hexcode"))), entry.get("label")
    own = entry.get("tags")
    words = tuple(filter(None, map(captions.words, own))) if isinstance(own, list) else inherited
    if code and (label := captions.words(label)):
        labels[code], tags[code] = label, words
    skins = entry.get("skins") if inherited == () else None
    for skin in skins if isinstance(skins, list) else ():
        _add_entry(skin, words or ("",), labels, tags)


def squashed(name: str) -> str:
    """Return the letters and digits of a name in lower case: "alarmclock" of "alarm-clock"."""
    return re.sub(r"[^a-z0-9]+", "", name.lower())


class Names:
    """Finds the code point and the words of icons, by all sets and keywords together."""

    def __init__(self, sets: Iterable[IconSet], keywords: Keywords):
        self._labels = dict(keywords.labels)
        self._exact: dict[str, str] = {}
        self._squashed: dict[str, str] = {}
        for each in sets:
            for name, code in each.codes.items():
                self._exact.setdefault(name, code)
                self._labels.setdefault(code, name.replace("-", " "))
        for name, code in (*self._exact.items(), *((name, code) for code, name in keywords.labels.items())):
            self._squashed.setdefault(squashed(name), code)
        formal = {f"{number:x}" for number in _PICTOGRAPHS} | self._labels.keys()
        for code in sorted(formal):
            if name := codes.unicode_name(code):
                self._squashed.setdefault(squashed(name), code)

    def code(self, of: IconSet, icon: Icon) -> str | None:
        """Return the code point of an icon: by its own set, by the name in another set, or by the name in words."""
        names = (icon.name, *icon.other_names)
        for found in (of.codes, self._exact):
            for name in names:
                if name in found:
                    return found[name]
        return next(
            (self._squashed[key] for name in names if (key := squashed(name)) in self._squashed), None
        )

    def label(self, code: str) -> str:
        """Return the name of a code point in words, "" if none is known that says what it shows."""
        if code in self._labels:
            return self._labels[code]
        name = codes.unicode_name(code)
        return "" if _FILLINGS.search(name) else name

    def others(self, code: str, icon: Icon) -> list[str]:
        """Return other names of an icon in words: of its set, and of Unicode."""
        found = [name.replace("-", " ") for name in (icon.name, *icon.other_names) if "-" in name]
        found = [name for name in found if not name.startswith("flag for ")]  # "flag for white flag"
        formal = codes.unicode_name(code)
        if formal and not _FILLINGS.search(formal):
            found.append(formal)
        own = squashed(self.label(code))
        return [name for name in dict.fromkeys(found) if squashed(name) != own]
