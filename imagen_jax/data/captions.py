"""Captions as they stand in text files and in JSON."""

from __future__ import annotations

import json
import re
import unicodedata

from imagen_jax.data import text_files
from imagen_jax.data.quarantine import Unusable

CAPTIONS = ("caption", "text")  # what a column, field or feature of captions may be called
# What editors and programs leave around a text. Not every invisible character: an emoji may end with one.
_AROUND = r"[\s\x00-\x1f\x7f-\x9f\u200b\u2060\ufeff]+"
_EDGES = re.compile(rf"\A{_AROUND}|{_AROUND}\Z")
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"  # letters and a symbol by their category, but nothing is drawn


def stripped(text: str) -> str:
    """A caption or prompt without blanks around it; "" if none of its characters is visible.

    Invisible characters within are kept: they join emoji, and letters of some scripts.
    """
    return _EDGES.sub("", text) if any(map(_is_visible, text)) else ""


def _is_visible(letter: str) -> bool:
    """Whether a character is drawn on its own: no blank, control, format or combining character."""
    category = unicodedata.category(letter)
    return not (category[0] in "ZM" or category in ("Cc", "Cf") or letter in _FILLERS)


def lines(content: bytes, where: str) -> tuple[str, ...]:
    """The captions in a text file, one a line. Raises Unusable if it is not text."""
    try:
        return tuple(text_files.split(text_files.decode(content, where)))
    except text_files.NotTextError as error:
        raise Unusable("unreadable caption", str(error)) from error


def in_json(content: bytes, where: str, keys: tuple[str, ...] = CAPTIONS) -> tuple[str, ...]:
    """The captions in a JSON object, none if it has none. Raises Unusable if they cannot be read."""
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unusable("unreadable caption", f"{where} is not JSON: {error}") from error
    if not isinstance(row, dict):
        raise Unusable("unreadable caption", f"{where} is not a JSON object")
    value = next((row[key] for key in keys if row.get(key) is not None), None)
    found = texts(value)
    if found is None:
        raise Unusable("unreadable caption", f"{where}: expected text, got {json.dumps(value)[:60]}")
    return found


def texts(value: object) -> tuple[str, ...] | None:
    """A text, or each text of a list, where None is none; None if there is anything else."""
    values = [one for one in (value if isinstance(value, list) else [value]) if one is not None]
    return tuple(values) if all(isinstance(one, str) for one in values) else None
