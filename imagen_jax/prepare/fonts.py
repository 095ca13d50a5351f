"""Colour emoji fonts: one captioned picture for each glyph.

The caption is the Unicode name of the character in lower case ("smiling face with sunglasses"). Sequences (skin tones,
professions, families, keycaps) are named where their name follows from their parts; others, such as national flags,
are omitted.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from imagen_jax import checks, resize
from imagen_jax.checks import Verbatim
from imagen_jax.data import transforms
from imagen_jax.prepare import listing
from imagen_jax.prepare.parts import Part, Plan
from imagen_jax.prepare.pictures import Found, Pictures, Rules
from imagen_jax.prepare.quarantine import LeftOut

FONT = "NotoColorEmoji.ttf"
FOLDERS = (
    *(f"/usr/share/fonts/{name}" for name in ("truetype/noto", "noto", "google-noto-emoji")),
    "/usr/share/fonts/google-noto-color-emoji-fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts",
    "~/Library/Fonts",
)  # fmt: skip
MIN_SIZE, MAX_SIZE = 8, 1024  # pixels
STRIKES = (109, 160, 136, 128, 96, 72, 64)  # bitmap fonts open at their own sizes only; Noto's is 109

ZWJ, VS16, KEYCAP = "\u200d", "\ufe0f", "\u20e3"
TONES = {
    "": "", "\U0001f3fb": ", light skin tone", "\U0001f3fc": ", medium-light skin tone",
    "\U0001f3fd": ", medium skin tone", "\U0001f3fe": ", medium-dark skin tone", "\U0001f3ff": ", dark skin tone",
}  # fmt: skip
PEOPLE = {"🧑": "person", "👨": "man", "👩": "woman"}
CHILDREN = {"👦": "boy", "👧": "girl"}
SIGNS = {"♂": "man", "♀": "woman"}
ROLES = {
    "⚕": "health worker", "🎓": "student", "🏫": "teacher", "⚖": "judge", "🌾": "farmer",
    "🍳": "cook", "🔧": "mechanic", "🏭": "factory worker", "💼": "office worker",
    "🔬": "scientist", "💻": "technologist", "🎤": "singer", "🎨": "artist", "✈": "pilot",
    "🚀": "astronaut", "🚒": "firefighter", "🦰": "with red hair", "🦱": "with curly hair", "🦳": "with white hair",
    "🦲": "without hair", "🦯": "with white cane", "🦼": "in motorized wheelchair", "🦽": "in manual wheelchair",
    "🍼": "feeding baby",
}  # fmt: skip
OTHERS = {
    "🐈‍⬛": "black cat", "🐕‍🦺": "service dog", "🐻‍❄": "polar bear", "🐦‍⬛": "black bird",
    "❤‍🔥": "heart on fire", "❤‍🩹": "mending heart", "🏳‍🌈": "rainbow flag",
    "🏳‍⚧": "transgender flag", "🏴‍☠": "pirate flag", "👁‍🗨": "eye in speech bubble",
    "😶‍🌫": "face in clouds", "😮‍💨": "face exhaling", "😵‍💫": "face with spiral eyes",
    "🧑‍🎄": "mx claus",
}  # fmt: skip
BONDS = {f"❤{VS16}": "couple with heart", f"❤{VS16}{ZWJ}💋": "kiss", "🤝": "holding hands"}


def plan(font: Path | None, size: int, name: str, validation_fraction: float, test_fraction: float) -> Plan:
    """Return the plan of a data set `name` of a font's glyphs, as pictures of `size` pixels a side.

    Args:
      font: a colour emoji font with bitmap glyphs; by default the system's `FONT`.
      validation_fraction, test_fraction: share of pictures in these splits, chosen by the hash of their bytes.

    Raises:
      ValueError: a value is out of range, or the font is missing or cannot be read.
    """
    checks.whole("--size", size, MIN_SIZE, MAX_SIZE)
    rules = Rules(1, MAX_SIZE, validation_fraction, test_fraction)
    path = find_font(font)
    open_font(path)
    stamp = listing.stamp(path.parent, [path.name])
    settings = {"font": path.name, "size": size, "name": name, "files": stamp}
    settings |= {"validation_fraction": validation_fraction, "test_fraction": test_fraction}
    return Plan(
        job=Pictures(Font(path, size), rules),
        parts=[Part(path.name, 0, None)],
        splits=rules.splits(),
        keys=("image", "caption"),
        name=name,
        description=f"Glyphs of the font {path.name!r} and their names.",
        settings=settings,
        left_out=[],
    )


@dataclasses.dataclass(frozen=True)
class Font:
    """A colour emoji font as a source of pictures of `size` pixels a side; it is read in one part."""

    path: Path
    size: int

    def read(self, part: Part) -> Iterator[Found | LeftOut]:
        """Yield the glyphs in the order of their names."""
        found = []
        for sequence, caption, picture in pictures(self.path):
            scale = resize.area if self.size <= len(picture) else resize.bilinear
            picture = np.rint(scale(picture, self.size)).astype(np.uint8)
            stem = "emoji_u" + "_".join(f"{ord(c):04x}" for c in sequence if c != VS16)
            found.append(Found(f"{stem}.png", transforms.encode_png(picture), (caption,)))
        if not found:
            fix = f"use a bitmap colour emoji font such as {FONT}"
            yield LeftOut(part.name, "no picture", f"no glyph was drawn: {fix}")
        yield from sorted(found, key=lambda each: each.file)


def single_name(character: str) -> str | None:
    """Return the lower-case Unicode name of a character that can be drawn, else None."""
    name = unicodedata.name(character, "").lower()
    # Marks, spaces, control characters and tags draw nothing of their own.
    drawable = unicodedata.category(character)[0] in "SNP"
    return name if name and drawable and not name.startswith("variation selector") else None


def gendered(name: str, gender: str) -> str:
    """As woman: "deaf person" -> "deaf woman", "man in..." -> "woman in...", "elf" -> "woman elf"."""
    words = name.split()
    if name == "merperson":
        return {"woman": "mermaid", "man": "merman"}[gender]
    if "person" in words:
        return " ".join(gender if word == "person" else word for word in words)
    return " ".join([gender, *(words[1:] if words[0] in SIGNS.values() else words)])


def candidates(characters: list[str]) -> Iterator[tuple[str, str]]:
    """Yield (sequence, caption) of everything that may be a glyph with a known name, single characters first."""
    names = {c: name for c in characters if (name := single_name(c))}
    yield from names.items()
    for digit in "0123456789*#":
        yield digit + VS16 + KEYCAP, f"keycap {single_name(digit)}"
    yield from OTHERS.items()
    # Each character is tried with each tone; the font decides which combinations exist.
    for character, name in names.items():
        for tone, suffix in TONES.items() if character not in TONES else ():
            if tone:
                yield character + tone, name + suffix
            for sign, gender in SIGNS.items():
                yield character + tone + ZWJ + sign + VS16, gendered(name, gender) + suffix
    for (person, name), (tone, suffix) in itertools.product(PEOPLE.items(), TONES.items()):
        for thing, words in ROLES.items():
            yield person + tone + ZWJ + thing, f"{name} {words}{suffix}"
    yield from _groups()


def _groups() -> Iterator[tuple[str, str]]:
    """Yield families, and couples with and without skin tones."""
    parents = [*itertools.product("👨👩"), *itertools.product("👨👩", repeat=2)]
    children = [*itertools.product("👦👧"), *itertools.product("👦👧", repeat=2)]
    for group in (p + c for p, c in itertools.product(parents, children)):
        words = ", ".join({**PEOPLE, **CHILDREN}[member] for member in group)
        yield ZWJ.join(group), f"family: {words}"
    for (bond, name), (a, a_name), (b, b_name), (tone, suffix), (other, b_suffix) in itertools.product(
        BONDS.items(), PEOPLE.items(), PEOPLE.items(), TONES.items(), TONES.items()
    ):
        yield a + tone + ZWJ + bond + ZWJ + b + other, f"{name}: {a_name}{suffix} and {b_name}{b_suffix}"


def find_font(font: Path | None) -> Path:
    """Return the font's path, by default that of the system's `FONT`; raise ValueError if there is none."""
    if font is not None:
        fix = "give the path of a colour emoji font"
        checks.require(font.is_file(), "--font", "be a file", Verbatim(font), fix)
        return font
    for folder in FOLDERS:
        if (path := Path(folder).expanduser() / FONT).is_file():
            return path
    fix = "install it (apt-get install fonts-noto-color-emoji) or name a font with --font"
    raise checks.error(FONT, "be installed", Verbatim("none"), fix)


def open_font(path: Path) -> tuple[ImageFont.FreeTypeFont, list[str]]:
    """Open a font at a size that it has; return it and its characters. Raises ValueError if it cannot be read."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        characters = [chr(code) for code in sorted(TTFont(path, lazy=True, fontNumber=0).getBestCmap())]
    except (TTLibError, OSError, TypeError) as error:
        got = Verbatim(f"{path} ({error})")
        raise checks.error("--font", "be a font that can be read", got, "give another") from error
    engine = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
    for size in STRIKES:
        try:
            return ImageFont.truetype(path, size, layout_engine=engine), characters
        except OSError:
            continue
    fix = "use a bitmap colour emoji font"
    raise checks.error("--font", f"have bitmaps of a size in {STRIKES}", Verbatim(path), fix)


def draw(font: ImageFont.FreeTypeFont, sequence: str, side: int) -> np.ndarray | None:
    """Return uint8 [side, side, 3], the glyph centred on white; None if it is blank or too large."""
    canvas = Image.new("RGBA", (2 * side, 2 * side), (255, 255, 255, 0))
    ImageDraw.Draw(canvas).text((side // 2, side // 2), sequence, font=font, embedded_color=True)
    box = canvas.getchannel("A").getbbox()
    if box is None or max(box[2] - box[0], box[3] - box[1]) > side:
        return None
    glyph = canvas.crop(box)
    picture = Image.new("RGB", (side, side), "white")
    picture.paste(glyph, ((side - glyph.width) // 2, (side - glyph.height) // 2), glyph)
    picture = np.asarray(picture)
    return None if (picture > 250).all() else picture


def pictures(path: Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (sequence, caption, picture) of each distinct glyph of a font that has a name."""
    font, characters = open_font(path)
    advance = font.getlength("😀")
    side, seen = int(np.ceil(max(advance, 1))), set()
    shaped = features.check("raqm")  # without it no sequence becomes one glyph
    for sequence, caption in candidates(characters):
        if len(sequence) > 1 and (not shaped or font.getlength(sequence) > advance):
            continue  # drawn as several glyphs: the font has no picture of it
        picture = draw(font, sequence, side)
        if picture is None:
            continue
        digest = hashlib.sha256(picture.tobytes()).digest()
        if digest not in seen:
            seen.add(digest)
            yield sequence, caption, picture
