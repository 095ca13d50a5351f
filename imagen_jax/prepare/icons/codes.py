"""Code points of emoji, written as hexadecimal numbers joined by hyphens: "1f469-200d-1f680"."""

from __future__ import annotations

import re
import unicodedata

VARIATION = "fe0f"  # asks for a coloured picture; some sets write it and some do not
TONES = {"1f3fb", "1f3fc", "1f3fd", "1f3fe", "1f3ff"}
# Not pictures of their own: letters of flags, tones and hair.
COMPONENTS = TONES | {f"{code:x}" for code in (*range(0x1F1E6, 0x1F200), *range(0x1F9B0, 0x1F9B4))}
_JOINER = "200d"
_GENDERS = {"2640", "2642"}
_DIRECTIONS = {"27a1"}
_PERSON, _MAN_WOMAN = "1f9d1", {"1f468", "1f469"}


def normalized(text: str) -> str | None:
    """Return a sequence in lower case, without leading zeros and variation selectors; None if it is none."""
    if not re.fullmatch(r"[0-9A-Fa-f]{1,6}([-_ ][0-9A-Fa-f]{1,6}){0,15}", text):
        return None
    numbers = [int(part, 16) for part in re.split("[-_ ]", text)]
    if any(number > 0x10FFFF for number in numbers):
        return None
    return "-".join(code for number in numbers if (code := f"{number:x}") != VARIATION) or None


def of(text: str) -> str:
    """Return the sequence of the characters of a text."""
    return "-".join(code for letter in text if (code := f"{ord(letter):x}") != VARIATION)


def has_tone(code: str) -> bool:
    """Whether a sequence is a person or hand of a certain skin tone."""
    return not TONES.isdisjoint(code.split("-"))


def family(code: str) -> str:
    """Return what variants of one subject share: without skin tones, genders and directions.

    Subjects of one family are held out together, otherwise a man juggling would show what a woman juggling looks like.
    """
    dropped = TONES | _GENDERS | _DIRECTIONS | {_JOINER}
    kept = [_PERSON if part in _MAN_WOMAN else part for part in code.split("-") if part not in dropped]
    return "-".join(kept) or code


def unicode_name(code: str) -> str:
    """Return the lower-case Unicode name of a single character, "" for a sequence or one without a name."""
    number = int(code, 16) if "-" not in code else 0
    return unicodedata.name(chr(number), "").lower()
