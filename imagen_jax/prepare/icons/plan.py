"""The plan of a data set of icons: which pictures, with which captions, in which split."""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from imagen_jax import checks
from imagen_jax.data import transforms
from imagen_jax.prepare.icons import captions, codes, names, rendering, sets, splits
from imagen_jax.prepare.parts import Part, Plan
from imagen_jax.prepare.quarantine import LeftOut, Unusable

PART = 256  # pictures
MIN_SIZE, MAX_SIZE = 8, 1024  # pixels
COLOURS = {"white": "#ffffff", "black": "#000000", "grey": "#808080"}


@dataclasses.dataclass(frozen=True)
class Choices:
    """What of the sets becomes which records.

    Attributes:
      size: side of the square pictures in pixels.
      background: colour of what is transparent, a name in COLOURS or "#rrggbb".
      skin_tones: whether pictures of people and hands in each skin tone are used beside the neutral ones.
      accept_licence: SPDX identifiers of licences that are accepted beside `sets.LICENCES`.
      unseen_subjects_fraction, unseen_pairs_fraction, validation_fraction: see `splits.Fractions`.
    """

    size: int = 64
    background: str = "white"
    skin_tones: bool = False
    accept_licence: tuple[str, ...] = ()
    unseen_subjects_fraction: float = 0.06
    unseen_pairs_fraction: float = 0.08
    validation_fraction: float = 0.03

    def __post_init__(self):
        _ = self.fractions  # checks them
        checks.whole("--size", self.size, MIN_SIZE, MAX_SIZE)
        rule = f"be one of {', '.join(COLOURS)} or a colour such as #ff8800"
        checks.require(self.colour is not None, "--background", rule, self.background)

    @property
    def fractions(self) -> splits.Fractions:
        return splits.Fractions(
            self.unseen_subjects_fraction, self.unseen_pairs_fraction, self.validation_fraction
        )

    @property
    def colour(self) -> str | None:
        """The background as "#rrggbb"; None if it is no colour."""
        given = self.background.lower()
        return COLOURS.get(given) or (given if re.fullmatch(r"#[0-9a-f]{6}", given) else None)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture to render: `captions` are its records, `claims` say what it shows."""

    file: str
    body: str
    box: tuple[float, float, float, float]
    split: str
    captions: tuple[str, ...]
    claims: str


@dataclasses.dataclass(frozen=True)
class Icons:
    """The job of rendering icons, see `parts.Job`. Contents of a part: pictures."""

    size: int
    colour: str

    def examples(self, part: Part) -> Iterator[tuple[str, dict] | LeftOut]:
        with rendering.Renderer(self.size, self.colour) as render:
            for picture in part.what:
                try:
                    image = render(rendering.document(picture.body, picture.box))
                except Unusable as error:
                    yield error.of(picture.file)
                    continue
                image = transforms.encode_png(image)
                for caption in picture.captions:
                    yield picture.split, {"image": image, "caption": caption, "claims": picture.claims}


def plan(paths: Sequence[Path], keywords: Path | None, name: str, choices: Choices) -> Plan:
    """Return the plan of a data set of icon sets.

    Args:
      paths: packages `@iconify-json/NAME`, .tgz files or directories, one for each style.
      keywords: the package `emojibase-data`; without it captions have no keywords and fewer names are joined.
      name: of the data set.
      choices: what becomes which records.

    Raises:
      ValueError: a package is damaged, of another format or licence, or twice the same.
    """
    found = [sets.read(path, choices.accept_licence) for path in paths]
    prefixes = collections.Counter(each.prefix for each in found)
    if twice := [prefix for prefix, num in prefixes.items() if num > 1]:
        raise ValueError(f"--icons must be different sets; got {twice[0]} twice: name each once.")
    words = names.read_keywords(keywords) if keywords else names.Keywords()
    pictures, left_out = _pictures(found, words, choices)
    pictures.sort(key=lambda picture: splits.digest("order", picture.file))
    counts = collections.Counter(picture.file.partition(":")[0] for picture in pictures)
    content = hashlib.sha256(repr(pictures).encode()).hexdigest()
    settings = {
        "sets": [
            each.about | {"style": each.style, "icons": len(each.icons), "pictures": counts[each.prefix]}
            for each in found
        ],
        "emojibase": words.about,
        "files": content,
    }
    chunks = [pictures[start : start + PART] for start in range(0, len(pictures), PART)]
    return Plan(
        job=Icons(choices.size, choices.colour),
        parts=[Part(f"{chunk[0].file} and on", len(chunk), chunk) for chunk in chunks],
        splits=(splits.TRAIN, splits.VALIDATION, splits.SUBJECTS, splits.PAIRS),
        keys=("image", "caption", "claims"),
        name=name,
        description=f"Icons in the styles {', '.join(each.style for each in found)} and their names.",
        settings=settings,
        left_out=left_out,
        some_empty=True,
        option="--icons",
        notice=_notice(found, words),
    )


def _notice(found: Sequence[sets.IconSet], words: names.Keywords) -> str:
    """Return who made the pictures and the words, under which licences."""
    lines = ["Pictures in this data set, and what was trained on them, are made from these icon sets:", ""]
    for each in found:
        about = {key: value or "not stated" for key, value in each.about.items()}
        lines.append(
            f"- {about['title']} by {about['author']} ({about['author_url']}), licence {about['licence']} "
            f"({about['licence_url']}), from the package @iconify-json/{each.prefix} {about['version']}"
        )
    if words.about:
        about = words.about
        lines += ["", f"Names and keywords: {about['name']} {about['version']}, licence {about['licence']}."]
    return "\n".join(lines) + "\n"


def _pictures(
    found: list[sets.IconSet], words: names.Keywords, choices: Choices
) -> tuple[list[Picture], list[LeftOut]]:
    known = names.Names(found, words)
    left_out = [row for each in found for row in each.left_out]
    chosen: dict[tuple[str, str], sets.Icon] = {}
    for each in found:
        for icon in each.icons:
            code, where = known.code(each, icon), f"{each.prefix}:{icon.name}"
            if code is None:
                left_out.append(LeftOut(where, "no code point", "neither chars.json nor its name says which"))
            elif code in codes.COMPONENTS:
                left_out.append(LeftOut(where, "part of others", known.label(code)))
            elif codes.has_tone(code) and not choices.skin_tones:
                left_out.append(LeftOut(where, "skin tone", "--skin-tones uses it"))
            elif not known.label(code):
                left_out.append(LeftOut(where, "no caption", f"no name is known of {code}"))
            elif (each.prefix, code) in chosen:
                left_out.append(LeftOut(where, "duplicate key", f"of {chosen[each.prefix, code].name}"))
            else:
                chosen[each.prefix, code] = icon
    split_of = splits.split_of(chosen, choices.fractions)
    styles = {each.prefix: each.style for each in found}
    pictures = []
    for (prefix, code), icon in chosen.items():
        name, split, style = captions.readable(known.label(code)), split_of[prefix, code], styles[prefix]
        texts = captions.captions(name, style, known.others(code, icon), words.tags.get(code, ()))
        claims = json.dumps({"subject": code, "name": name, "style": style}, ensure_ascii=False)
        texts = texts if split == splits.TRAIN else texts[:1]
        pictures.append(Picture(f"{prefix}:{icon.name}", icon.body, icon.box, split, texts, claims))
    return pictures, left_out
