"""Make a folder of pictures and captions from a colour emoji font.

  imagen-jax emoji --output emoji
  imagen-jax prepare --input emoji --output datasets/emoji

The caption of a glyph is its Unicode name in lower case ("smiling face with sunglasses").
Sequences (skin tones, professions, families, keycaps) get a name only where it follows from their
parts; others, such as national flags, are left out. Mind the font's license if you share the
pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import logging
import os
import shutil
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from imagen_jax import progress, resize
from imagen_jax.cli import parsing
from imagen_jax.data import transforms
from imagen_jax.storage import files

_LOGGER = logging.getLogger(__name__)

FONT = "NotoColorEmoji.ttf"
FONT_FOLDERS = (
    "/usr/share/fonts/truetype/noto",
    "/usr/share/fonts/noto",
    "/usr/share/fonts/google-noto-emoji",
    "/usr/share/fonts/google-noto-color-emoji-fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "~/Library/Fonts",
)
STRIKES = (
    109,
    160,
    136,
    128,
    96,
    72,
    64,
)  # bitmap fonts open at their own sizes only; Noto's is 109

ZWJ, VS16, KEYCAP = "\u200d", "\ufe0f", "\u20e3"
TONES = {
    "\U0001f3fb": "light skin tone",
    "\U0001f3fc": "medium-light skin tone",
    "\U0001f3fd": "medium skin tone",
    "\U0001f3fe": "medium-dark skin tone",
    "\U0001f3ff": "dark skin tone",
}
PEOPLE = {"🧑": "person", "👨": "man", "👩": "woman"}
CHILDREN = {"👦": "boy", "👧": "girl"}
SIGNS = {"♂": "man", "♀": "woman"}
ROLES = {
    "⚕": "health worker", "🎓": "student", "🏫": "teacher", "⚖": "judge", "🌾": "farmer",
    "🍳": "cook", "🔧": "mechanic", "🏭": "factory worker", "💼": "office worker",
    "🔬": "scientist", "💻": "technologist", "🎤": "singer", "🎨": "artist", "✈": "pilot",
    "🚀": "astronaut", "🚒": "firefighter",
}  # fmt: skip
ATTRIBUTES = {
    "🦰": "with red hair", "🦱": "with curly hair", "🦳": "with white hair", "🦲": "without hair",
    "🦯": "with white cane", "🦼": "in motorized wheelchair", "🦽": "in manual wheelchair",
    "🍼": "feeding baby",
}  # fmt: skip
OTHERS = {
    "🐈‍⬛": "black cat", "🐕‍🦺": "service dog", "🐻‍❄": "polar bear", "🐦‍⬛": "black bird",
    "❤‍🔥": "heart on fire", "❤‍🩹": "mending heart", "🏳‍🌈": "rainbow flag",
    "🏳‍⚧": "transgender flag", "🏴‍☠": "pirate flag", "👁‍🗨": "eye in speech bubble",
    "😶‍🌫": "face in clouds", "😮‍💨": "face exhaling", "😵‍💫": "face with spiral eyes",
    "🧑‍🎄": "mx claus",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    output: Path
    """Folder for the pictures (.png) and captions (.txt); must not exist or be empty."""
    font: Path | None = None
    """A colour emoji font with bitmap glyphs; by default the system's NotoColorEmoji.ttf."""
    size: int = 128
    """Side of the square pictures, in pixels."""


def single_name(character: str) -> str | None:
    """Lower-case Unicode name of one character that can be a picture, or None."""
    name = unicodedata.name(character, "").lower()
    # Marks, spaces, controls and tags draw nothing of their own.
    drawable = unicodedata.category(character)[0] in "SNP"
    return name if name and drawable and not name.startswith("variation selector") else None


def gendered(name: str, gender: str) -> str:
    """As woman: "deaf person" -> "deaf woman", "man in..." -> "woman in...", "elf" -> "woman elf"."""
    words = name.split()
    if name == "merperson":
        return {"woman": "mermaid", "man": "merman"}[gender]
    if "person" in words:
        return " ".join(gender if word == "person" else word for word in words)
    if words[0] in SIGNS.values():
        return " ".join([gender, *words[1:]])
    return f"{gender} {name}"


def candidates(characters: list[str]) -> Iterator[tuple[str, str]]:
    """(sequence, caption) of whatever could be a glyph with an honest name; simplest first."""
    names = {c: name for c in characters if (name := single_name(c))}
    yield from names.items()
    for digit in "0123456789*#":
        yield digit + VS16 + KEYCAP, f"keycap {single_name(digit)}"
    for sequence, name in OTHERS.items():
        yield sequence, name
    # Every character is tried with a tone; the font tells which combinations it has.
    for character, name in names.items():
        if character not in TONES:
            for tone, tone_name in {"": "", **TONES}.items():
                suffix = f", {tone_name}" if tone else ""
                if tone:
                    yield character + tone, name + suffix
                for sign, gender in SIGNS.items():
                    yield character + tone + ZWJ + sign + VS16, gendered(name, gender) + suffix
    yield from _people()
    yield from _groups()


def _people() -> Iterator[tuple[str, str]]:
    for (person, name), (tone, tone_name) in itertools.product(PEOPLE.items(), {"": "", **TONES}.items()):
        suffix = f", {tone_name}" if tone else ""
        for thing, words in {**ROLES, **ATTRIBUTES}.items():
            yield person + tone + ZWJ + thing, f"{name} {words}{suffix}"


def _groups() -> Iterator[tuple[str, str]]:
    """Families, and couples with and without skin tones."""
    parents = [*itertools.product("👨👩"), *itertools.product("👨👩", repeat=2)]
    children = [*itertools.product("👦👧"), *itertools.product("👦👧", repeat=2)]
    for group in (p + c for p, c in itertools.product(parents, children)):
        words = ", ".join({**PEOPLE, **CHILDREN}[member] for member in group)
        yield ZWJ.join(group), f"family: {words}"
    bonds = {
        "❤" + VS16: "couple with heart",
        "❤" + VS16 + ZWJ + "💋": "kiss",
        "🤝": "holding hands",
    }
    tones = [("", ""), *TONES.items()]
    for (bond, name), (a, a_name), (b, b_name) in itertools.product(
        bonds.items(), PEOPLE.items(), PEOPLE.items()
    ):
        for (tone, tone_name), (other, other_name) in itertools.product(tones, tones):
            first = f"{a_name}, {tone_name}" if tone else a_name
            second = f"{b_name}, {other_name}" if other else b_name
            yield a + tone + ZWJ + bond + ZWJ + b + other, f"{name}: {first} and {second}"


def find_font(font: Path | None) -> Path:
    if font is not None:
        if not font.is_file():
            raise ValueError(f"--font {font} is not a file.")
        return font
    for folder in FONT_FOLDERS:
        path = Path(folder).expanduser() / FONT
        if path.is_file():
            return path
    raise ValueError(
        f"{FONT} was not found; install it (apt-get install fonts-noto-color-emoji) or name a font "
        "with --font."
    )


def open_font(path: Path) -> tuple[ImageFont.FreeTypeFont, list[str]]:
    """The font at a size it has, and the characters in it."""
    from fontTools.ttLib import TTFont, TTLibError

    try:
        characters = [chr(code) for code in sorted(TTFont(path, lazy=True, fontNumber=0).getBestCmap())]
    except (TTLibError, OSError, TypeError) as error:
        raise ValueError(f"{path} is not a font that can be read: {error}") from error
    engine = ImageFont.Layout.RAQM if features.check("raqm") else ImageFont.Layout.BASIC
    for size in STRIKES:
        try:
            return ImageFont.truetype(path, size, layout_engine=engine), characters
        except OSError:
            continue
    raise ValueError(f"{path} opens at none of the sizes {STRIKES}; use a bitmap colour emoji font.")


def draw(font: ImageFont.FreeTypeFont, sequence: str, side: int) -> np.ndarray | None:
    """uint8 [side, side, 3], the glyph centred on white; None if it is blank or too large."""
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
    """(sequence, caption, picture) of each different glyph of a font that has a name."""
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


def main(options: Options) -> None:
    if not 8 <= options.size <= 1024:
        raise ValueError(f"--size must lie in 8..1024 pixels; got {options.size}.")
    output = Path(os.path.abspath(options.output))
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"--output {output} exists and is not empty; choose another or delete it.")
    unfinished = output.with_name(f".{output.name}.unfinished-{os.getpid()}")
    files.check_directory(unfinished, "--output")
    font = find_font(options.font)
    output.parent.mkdir(parents=True, exist_ok=True)
    unfinished.mkdir()
    try:
        count = write_all(font, options.size, unfinished)
        os.rename(unfinished, output)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
    if not features.check("raqm"):
        _LOGGER.warning("Pillow lacks raqm here: single characters only, no skin tones, professions, families.")
    _LOGGER.info(f"Wrote {output}: {count} pictures with captions.")


def write_all(font: Path, size: int, folder: Path) -> int:
    count = 0
    for sequence, caption, picture in progress.over(pictures(font), None, "pictures", "emoji"):
        scale = resize.area if size <= len(picture) else resize.bilinear
        picture = np.rint(scale(picture, size)).astype(np.uint8)
        stem = "emoji_u" + "_".join(f"{ord(c):04x}" for c in sequence if c != VS16)
        (folder / f"{stem}.png").write_bytes(transforms.encode_png(picture))  # the folder appears as a whole
        (folder / f"{stem}.txt").write_text(caption + "\n", encoding="utf-8")
        count += 1
    if not count:
        raise ValueError(f"{font} drew no picture; use a bitmap colour emoji font such as {FONT}.")
    return count


def parse(args: list[str]) -> Options:
    return parsing.parse(Options, __doc__, args)
