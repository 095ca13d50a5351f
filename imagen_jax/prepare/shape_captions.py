"""Captions of `shapes`: claims to captions, with templates and synonyms, and captions to claims.

Claims are JSON data with the content of the caption:
  {"kind": "relation", "relation": "left of", "background": None, "objects": [
      {"shape": "circle", "color": "red", "size": "small", "count": 1},
      {"shape": "star", "color": "blue", "size": None, "count": 1}]}
None means that the caption does not mention it. The relation holds from the first object to the second.
"""

import functools
import itertools
import re
from typing import Any

import numpy as np

Claims = dict[str, Any]

# The first word of each list is used most.
SHAPE_WORDS = {
    "circle": ("circle", "disc", "disk"), "square": ("square", "box"), "triangle": ("triangle",),
    "star": ("star",), "cross": ("cross", "plus sign"), "ring": ("ring", "donut"),
    "heart": ("heart",),
}  # fmt: skip
COLOR_WORDS = {
    "red": ("red",), "orange": ("orange",), "yellow": ("yellow",), "green": ("green",),
    "cyan": ("cyan", "turquoise"), "blue": ("blue",), "purple": ("purple", "violet"),
    "pink": ("pink",),
}  # fmt: skip
BACKGROUND_WORDS = {"white": ("white",), "black": ("black",), "grey": ("grey", "gray"),
                    "brown": ("brown",)}  # fmt: skip
SIZE_WORDS = {"small": ("small", "tiny", "little"), "large": ("large", "big", "huge")}
RELATION_WORDS = {
    "left of": ("left of", "to the left of", "on the left of"),
    "right of": ("right of", "to the right of", "on the right of"),
    "above": ("above", "over"), "below": ("below", "under", "beneath"),
}  # fmt: skip
COUNT_WORDS = {1: ("a", "an", "one", "the", "1"), 2: ("two", "a pair of", "a couple of", "2"),
               3: ("three", "a trio of", "3")}  # fmt: skip
OPENINGS = ("a picture of ", "an image of ", "a drawing of ", "there {be} ")
BACKGROUND_FORMS = (" on a {} background", " against a {} background", " on a {} backdrop",
                    " on {}")  # fmt: skip


def are_claims(claims: Any) -> bool:
    """Whether the claims of a record, JSON data or None, are of shapes."""
    return isinstance(claims, dict) and "objects" in claims


def pick(rng: np.random.Generator, options):
    """Draw one of the options with equal probability."""
    return options[rng.integers(len(options))]


def _word(rng: np.random.Generator, words: tuple[str, ...]) -> str:
    return words[0] if rng.random() < 0.6 else pick(rng, words)


def _with_article(words: str) -> str:
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def _plural(word: str) -> str:
    return word + ("es" if word.endswith(("s", "x")) else "s")


def _phrase(claim: Claims, rng: np.random.Generator) -> str:
    """Describe one object or several alike: "a small red circle", "two blue boxes"."""
    shape = _word(rng, SHAPE_WORDS[claim["shape"]])
    words = [_word(rng, SIZE_WORDS[claim["size"]])] if claim["size"] else []
    words.append(_word(rng, COLOR_WORDS[claim["color"]]))
    if claim["count"] == 1:
        return _with_article(" ".join([*words, shape]))
    # Digits are parsed, but not written.
    number = _word(rng, COUNT_WORDS[claim["count"]][:-1])
    return " ".join([number, *words, _plural(shape)])


def caption_of(claims: Claims, rng: np.random.Generator) -> str:
    """Write claims as a caption, with templates and synonyms that `rng` chooses."""
    phrases = [_phrase(claim, rng) for claim in claims["objects"]]
    opening = pick(rng, OPENINGS) if rng.random() < 0.5 else ""
    several = phrases[0].startswith(("two", "three"))
    opening = opening.format(be="are" if several else "is")
    if claims["relation"]:
        verb = "" if opening else pick(rng, ("", "", "is "))
        body = f"{phrases[0]} {verb}{_word(rng, RELATION_WORDS[claims['relation']])} {phrases[1]}"
    else:
        body = " and ".join([", ".join(phrases[:-1]), phrases[-1]] if phrases[1:] else phrases)
    if claims["background"]:
        form = pick(rng, BACKGROUND_FORMS)
        body += form.format(_word(rng, BACKGROUND_WORDS[claims["background"]]))
    return opening + body


def _choices(words: dict[Any, tuple[str, ...]]) -> str:
    # Longest first, so that "to the left of" is not matched by "left of".
    return "|".join(sorted(itertools.chain(*words.values()), key=len, reverse=True))


@functools.cache
def _grammar() -> tuple[re.Pattern, ...]:
    plurals = {shape: tuple(map(_plural, words)) for shape, words in SHAPE_WORDS.items()}
    opening = r"^(?:an? (?:picture|image|drawing) of |there (?:is|are) )"
    grounds = _choices(BACKGROUND_WORDS)
    background = rf" (?:on|against) (?:an? )?({grounds})(?: back(?:ground|drop))?$"
    relation = rf" (?:is )?({_choices(RELATION_WORDS)}) "
    phrase = (
        rf"(?:({_choices(COUNT_WORDS)}) )?(?:({_choices(SIZE_WORDS)}) )?"
        rf"({_choices(COLOR_WORDS)}) ({_choices(plurals)}|{_choices(SHAPE_WORDS)})"
    )
    return tuple(map(re.compile, (opening, background, relation, phrase)))


@functools.cache
def _meanings() -> dict[str, Any]:
    tables = (COUNT_WORDS, SIZE_WORDS, COLOR_WORDS, SHAPE_WORDS, BACKGROUND_WORDS, RELATION_WORDS)
    words = {word: meaning for table in tables for meaning, ws in table.items() for word in ws}
    return words | {_plural(word): shape for shape, ws in SHAPE_WORDS.items() for word in ws}


def parse_caption(caption: str) -> Claims | None:
    """Return the claims of a caption with any synonyms in any case; None for other captions."""
    opening, background, relation, phrase = _grammar()
    meaning = _meanings()
    text = opening.sub("", " ".join(caption.lower().strip(" .!").split()))
    ground = background.search(text)
    text = text[: ground.start()] if ground else text
    related = relation.search(text)
    parts = relation.split(text, 1)[::2] if related else re.split(r",? and |, ", text)
    matches = [phrase.fullmatch(part) for part in parts]
    if not all(matches):
        return None
    objects = []
    for count, size, color, shape in (match.groups() for match in matches):
        claim = {"shape": meaning[shape], "color": meaning[color], "size": meaning.get(size)}
        objects.append(claim | {"count": meaning.get(count, 1)})
    has_several = any(claim["count"] > 1 for claim in objects)
    if related and has_several:
        return None  # "two circles left of a star" is ambiguous
    kind = "relation" if related else "and" if len(objects) > 1 else "count" if has_several else "single"
    relation, ground = (found and meaning[found[1]] for found in (related, ground))
    return {"kind": kind, "objects": objects, "relation": relation, "background": ground}
