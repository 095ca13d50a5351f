"""Captions as they stand in text files and in JSON."""

from __future__ import annotations

import json

from imagen_jax.data.quarantine import Unusable

CAPTIONS = ("caption", "text")  # what a column, field or feature of captions may be called


def lines(content: bytes, where: str) -> tuple[str, ...]:
    """The captions in a text file, one a line. Raises Unusable if it is not UTF-8."""
    try:
        # Not splitlines: that cuts at form feeds and at U+2028 too, which stand inside of captions.
        return tuple(line.removesuffix("\r") for line in content.decode("utf-8-sig").split("\n"))
    except UnicodeDecodeError as error:
        raise Unusable("unreadable caption", f"{where} is not UTF-8: {error}") from error


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
