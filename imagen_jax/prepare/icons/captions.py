"""Captions of icons: "a tiger, noto style", "a tiger", and forms with other names and keywords."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

MAX_TAGS = 3
_AFTER_HEAD = re.compile(
    r"[:,(]| (with|without|of|in|on|and|behind|at|from|over|under|for|not|done|up|down|left|right|together|pointing|"
    r"showing|holding|hugging|wrestling|crossing)( |$)"
)  # what follows the head noun of a name
_PEOPLE = ("person", "man", "woman")  # in front of what they do
_PLURALS = ("men", "women", "people", "feet", "teeth", "children", "hundred points")
_SINGULARS = ("rhinoceros", "sauropods", "series", "gas", "lens")
_SINGULAR_ENDINGS = ("ss", "us", "is")
# Uncountable nouns and names that are no nouns, by the head or the whole name.
_BARE = set(
    """
    badminton bald bacon baseball basketball biohazard bowling bread breast-feeding broccoli butter camping cheese
    cooking copyright coral customs dashing divide dizzy dna fire fog foggy garlic ginger hockey ice infinity
    information knitting lacrosse locked luggage mahjong meat milk minus money multiply oden outbox plus popcorn
    prohibited radioactive registered rice sake salt skis soap spaghetti star-struck sunrise sunset sushi tennis thread
    tofu unlocked volleyball warning water wireless wood yarn zzz
    """.split()
) | {
    "baggage claim", "baguette bread", "canned food", "children crossing", "currency exchange", "high voltage",
    "horse racing", "left luggage", "light rail", "milky way", "mobile phone off", "mount fuji", "nail polish",
    "passport control", "ping pong", "pouring liquid", "rolling on the floor laughing", "shaved ice",
    "vibration mode", "yin yang",
}  # fmt: skip
MAX_NAME = 500  # characters
_BARE_BEGINNINGS = ("no ", "input ", "two ", "three ", "hundred ", "the ", "keycap ", "regional indicator ")
_TIME = re.compile(r".*( o'clock|-thirty)")
_ADJECTIVES = ("Japanese", "Christmas", "European", "T-Rex", "T-shirt")  # capitalised, and take an article
_AN = re.compile(r"[aeiou]|hour|x-|[AEIOU]|SOS|NG ", re.ASCII)
_A = re.compile(r"uni|uti|use|eu|one|European|ewe", re.ASCII)


def are_claims(claims: Any) -> bool:
    """Whether the claims of a record, JSON data or None, are of icons: a subject, by its code point, and a style."""
    return isinstance(claims, dict) and all(isinstance(claims.get(name), str) for name in ("subject", "style"))


def words(text: Any) -> str:
    """Return a name or keyword of a package with single spaces; "" if it is none that can stand in a caption."""
    text = " ".join(text.split()).strip(":, ") if isinstance(text, str) else ""
    return text if text.isprintable() and any(map(str.isalnum, text)) and len(text) <= MAX_NAME else ""


def readable(label: str) -> str:
    """Return the name of an emoji as it stands in a sentence: "the flag of Japan" of "flag: Japan"."""
    label = label.translate({0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'"})
    head, _, details = label.partition(": ")
    if not details:
        return label
    if head == "flag":
        return f"the flag of {details}"
    if head in ("keycap", "kiss", "family", "couple with heart"):
        return f"{head} {details}" if head == "keycap" else label
    for detail in details.split(", "):
        if detail == "bald":
            head = f"bald {head}"
        else:
            head += f" with {detail}" if detail.endswith(("hair", "beard")) else f", {detail}"
    return head


def phrase(name: str) -> str:
    """Return a name with its article, if it takes one: "a tiger", "an owl", "scissors", "Mount Fuji"."""
    if name.startswith(_BARE_BEGINNINGS) or _TIME.fullmatch(name) or name.lower() in _BARE:
        return name
    first = re.split(r"[ ,]", name)[0]
    if first[0].isupper() and first not in _ADJECTIVES and not first.rstrip("!").isupper():
        return name
    if not first[0].isalnum() or first[0].isdigit():
        return name
    head = first if first in _PEOPLE else _AFTER_HEAD.split(name, maxsplit=1)[0].split()[-1]
    if head in _PLURALS or head in _BARE:
        return name
    if head.endswith("s") and not head.endswith(_SINGULAR_ENDINGS) and head not in _SINGULARS:
        return name
    return f"{'an' if _AN.match(name) and not _A.match(name) else 'a'} {name}"


def captions(name: str, style: str, others: Sequence[str], tags: Iterable[str]) -> tuple[str, ...]:
    """Return the different captions of a picture; the first is the one that held-out pictures have.

    Args:
      name: the subject in words.
      style: the style in words.
      others: other names of the subject.
      tags: keywords, from which three are drawn by a hash of the picture.
    """
    subject = phrase(name)
    number = int.from_bytes(hashlib.sha256(f"{style}\0{name}".encode()).digest()[:8], "big")
    forms = [f"{subject}, {style} style", subject]
    other = phrase(others[number % len(others)]) if others else subject
    forms.append(f"{other} in {style} style")
    words = set(re.findall(r"[a-z]+", name.lower()))
    usable = [
        tag for tag in tags if re.fullmatch(r"[a-z][a-z -]{2,19}", tag) and not words & set(tag.split())
    ]
    drawn = sorted(usable, key=lambda tag: hashlib.sha256(f"{number}{tag}".encode()).digest())[:MAX_TAGS]
    if drawn:
        forms.append(f"{subject}, {', '.join(drawn)}, {style} style")
    return tuple(dict.fromkeys(forms))
