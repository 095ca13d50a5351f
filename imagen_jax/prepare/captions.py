"""Captions in text files and in JSON."""

from __future__ import annotations

import json
import reprlib
import unicodedata
from collections.abc import Iterable

from imagen_jax.prepare import text_files
from imagen_jax.prepare.quarantine import Unusable

CAPTIONS = ("caption", "text")  # usual names of a column, field or feature of captions
# Removed around a text: blanks, control characters and byte order marks; an emoji may end with others.
_BLANKS = map(chr, range(0x3001))
_AROUND = "".join(c for c in _BLANKS if c.isspace() or unicodedata.category(c) == "Cc") + "\u200b\u2060\ufeff"
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol by their category, but invisible
_DIGITS = 4000  # of an integer; Python refuses to convert longer ones


def stripped(text: str) -> str:
    """Remove blanks around a caption or prompt; return "" if none of its characters is visible.

    Invisible characters within it are kept: they join emoji, and letters of some scripts.
    """
    return text.strip(_AROUND) if any(map(_is_visible, text)) else ""


def _is_visible(letter: str) -> bool:
    """Whether a character is drawn on its own: not a blank, control, format or combining character."""
    category = unicodedata.category(letter)
    return not (category[0] in "ZM" or category in ("Cc", "Cf") or letter in _FILLERS)


def is_empty(value: object) -> bool:
    """Whether a field holds no caption: nothing, no visible text, or several of such values."""
    if isinstance(value, list | tuple):
        return all(map(is_empty, value))
    return value is None or (isinstance(value, str) and not stripped(value))


def columns(have: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """Return the names in `have` that match `wanted`, in the order of `wanted`.

    Names may be capitalised or have blanks around them; an exact match is first.
    """
    plain = {name: name.strip().lower() for name in have}
    found = []
    for name in wanted:
        alike = [other for other in plain if plain[other] == name.strip().lower()]
        found += sorted(alike, key=lambda other, name=name: other != name)
    return list(dict.fromkeys(found))


def read(content: bytes, where: str, keys: tuple[str, ...] = CAPTIONS) -> tuple[str, ...]:
    """Return the captions in a file: the lines of a text, or the first field of a .json among `keys` that has any.

    Returns () if none is visible.

    Raises:
      Unusable: they cannot be read; `where` names the file.
    """
    try:
        text = text_files.decode(content, where)
        found = _in_json(text, where, keys) if where.lower().endswith(".json") else text_files.split(text)
    except text_files.NotTextError as error:
        raise Unusable("unreadable caption", str(error)) from error
    return () if is_empty(found) else tuple(found)


def _in_json(text: str, where: str, keys: tuple[str, ...]) -> tuple[str, ...]:
    try:
        row = parse_json(text)
    except ValueError as error:
        raise Unusable("unreadable caption", f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise Unusable("unreadable caption", f"{where} is not a JSON object")
    value = first_filled(row, keys)
    found = texts(value)
    if found is None:
        got = "the field twice" if isinstance(value, Repeated) else reprlib.repr(value)
        raise Unusable("unreadable caption", f"{where}: expected text, got {got}")
    return found


class Repeated:
    """The value of a key that occurs in its JSON object twice with different values."""

    def __repr__(self) -> str:
        return "a key twice"


def parse_json(text: str) -> object:
    """Parse JSON. Integers of thousands of digits become floats; a value may be `Repeated`.

    Raises:
      json.JSONDecodeError: a ValueError: the text is not JSON, or nested too deeply.
    """
    try:
        return json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    except RecursionError as error:
        raise json.JSONDecodeError("nested too deeply", "", 0) from error


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < _DIGITS else float(digits)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    row = dict(pairs)
    if len(row) < len(pairs):
        row = {}
        for key, value in pairs:
            row[key] = Repeated() if key in row and row[key] != value else value
    return row


def first_filled(row: dict, wanted: Iterable[str]) -> object:
    """Return the value of the first of the wanted fields (see `columns`) that is not empty; None if all are."""
    return next((row[name] for name in columns(row, wanted) if not is_empty(row[name])), None)


def texts(value: object) -> tuple[str, ...] | None:
    """Return a text, or the texts of a list without None, as a tuple; None for any other value."""
    values = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
    return tuple(values) if all(isinstance(one, str) for one in values) else None
