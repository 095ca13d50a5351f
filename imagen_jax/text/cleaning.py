"""Repair of captions from the web: encodings, entities, tags, addresses, white space.

The same function for training and sampling, off unless a stage asks for it (`TextConfig.clean_captions`):
encoders of clean captions lose nothing without it.
"""

import re

# Tags that web pages put around text. Others stay: data sets write names as <person>.
_TAG = re.compile(
    r"<!--.{0,1000}?-->|</?(?:a|abbr|b|big|blockquote|br|center|code|div|em|font|h[1-6]|hr|i|img|li|ol|p|pre|s|small|span"
    r"|strike|strong|sub|sup|table|tbody|td|th|thead|tr|u|ul)(?:\s[^<>]*)?/?>",
    re.IGNORECASE | re.DOTALL,
)
_URL = re.compile(r"(?:\b(?:https?|ftp)://|\bwww\.)[^\s<>\")]+", re.IGNORECASE)
# Cleaning can uncover more to clean (&amp;lt;br&amp;gt;); real captions need two rounds.
_MOST_ROUNDS = 16
# Far more than any encoder reads; what is hostile takes time in the square of its length.
_MOST_CHARACTERS = 4096


def clean(caption: str) -> str:
    """Return the caption with broken Unicode and HTML entities repaired (ftfy), tags and URLs removed.

    Curly quotes become straight, ligatures and full-width letters plain, and white space single spaces.
    What is clean stays as it is, so cleaning twice is cleaning once. Characters after the first 4096 are cut.
    """
    caption = caption[:_MOST_CHARACTERS]
    for _ in range(_MOST_ROUNDS):
        cleaned = _round(caption)
        if cleaned == caption:
            break
        caption = cleaned
    return caption


def _round(caption: str) -> str:
    import ftfy

    caption = ftfy.fix_text(caption, unescape_html=True)
    caption = _URL.sub(" ", _TAG.sub(" ", caption))
    return " ".join(caption.split())
