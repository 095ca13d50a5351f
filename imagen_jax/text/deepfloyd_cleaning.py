"""Repair of captions as DeepFloyd IF was trained with them: lower case, and without what web pages put around text.

Stages of IF expect captions in exactly this form, quirks included; other stages have `cleaning.clean`.
"""

import html
import re
import urllib.parse

from imagen_jax.checks import error

_DOMAIN = r"[a-zA-Z0-9.\-]+[.](?:com|co|ru|net|org|edu|gov|it)[\w/-]*\b/?(?!@)"
_FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0\ufe31\ufe32\ufe58\ufe63"
    "\uff0d"
)


def _table(*rows: tuple[str, str]) -> tuple[tuple[re.Pattern, str], ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rows)


# (pattern, replacement), in this order.
_BEFORE_TAGS = _table(
    ("<person>", "person"),
    *((rf"\b((?:{scheme}:(?:/{{1,3}}|[a-zA-Z0-9%])|{_DOMAIN}))", "") for scheme in ("https?", "www")),
)
_AFTER_TAGS = _table(
    (r"@[\w\d]+\b", ""),  # nicknames
    (r"[\u31c0-\u9fff]+", ""),  # CJK
    (f"[{_DASHES}]+", "-"),
    ("[`\u00b4\u00ab\u00bb\u201c\u201d\u00a8]", '"'),
    ("[\u2018\u2019]", "'"),
    ("&quot;?", ""),
    ("&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # IP addresses
    (r"\d:\d\d\s+$", ""),  # numbers of articles
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"[\S]+\.(?:{_FILE_TYPES})", ""),
    ("[\"']{2,}", '"'),
    (r"[.]{2,}", " "),
    ("[#\u00ae\u2022\u00a9\u2122&@\u00b7\u00ba\u00bd\u00be\u00bf\u00a1\u00a7~" + r")(\]\[}{|\\/*]+", " "),
    (r"\s+\.\s+", " "),
)
# As in `cleaning`; IF itself cuts nothing.
_MOST_CHARACTERS = 4096
_JOINED = re.compile("[-_]")  # this-is-my-cat
_AFTER_REPAIR = _table(
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),  # jc6640
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),  # jc6640vc
    (r"\b\d+[a-zA-Z]+\d+\b", ""),  # 6640vc231
    (r"(worldwide\s+)?(free\s+)?shipping", ""),
    (r"(free\s)?download(\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{_FILE_TYPES})(\simage[s]?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),  # j2d1a2a
    ("\\b\\d+\\.?\\d*[x\u0445\u00d7]\\d+\\.?\\d*\\b", ""),  # 640x480, the second with a Cyrillic letter
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    # The space that may stand at either end keeps these from all but captions without one, as in IF.
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean(caption: str) -> str:
    """Return the caption as IF's pipelines give it to the tokenizer with their clean_caption: cleaned twice.

    Raises:
      ValueError: the package beautifulsoup4 is not installed.
    """
    return _once(_once(caption[:_MOST_CHARACTERS]))


def _once(caption: str) -> str:
    import ftfy

    caption = urllib.parse.unquote_plus(caption).strip().lower()
    caption = _replaced(caption, _BEFORE_TAGS)
    caption = _replaced(_without_tags(caption), _AFTER_TAGS)
    if len(_JOINED.findall(caption)) > 3:
        caption = _JOINED.sub(" ", caption)
    caption = html.unescape(html.unescape(ftfy.fix_text(caption)))
    return _replaced(caption, _AFTER_REPAIR).strip()


def _replaced(caption: str, table: tuple[tuple[re.Pattern, str], ...]) -> str:
    for pattern, replacement in table:
        caption = pattern.sub(replacement, caption)
    return caption


def _without_tags(caption: str) -> str:
    """Return the text of a caption that may be HTML."""
    try:
        from bs4 import BeautifulSoup, MarkupResemblesLocatorWarning
    except ImportError as missing:
        fix = "run `pip install beautifulsoup4`, or set text.clean_captions to False"
        raise error("cleaning of captions for DeepFloyd IF", "have beautifulsoup4", None, fix) from missing
    import warnings

    with warnings.catch_warnings(action="ignore", category=MarkupResemblesLocatorWarning):
        return BeautifulSoup(caption, features="html.parser").text
