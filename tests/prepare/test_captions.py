"""Where captions stand: sidecars, tables and members of archives as people name them, mistakes told at once."""

import json

import pytest

from imagen_jax.prepare import captions


def test_only_line_ends_cut_captions():
    assert captions.read("a\u2028b\x0cc\r\nd\n".encode(), "") == ("a\u2028b\x0cc", "d", "")


@pytest.mark.parametrize(
    "have, wanted, expected",
    [
        (["TEXT", "caption", " Caption", "n"], ("caption", "text"), ["caption", " Caption", "TEXT"]),
        (["Caption", "CAPTION"], ("caption",), ["Caption", "CAPTION"]),
        (["caption", "Caption"], ("Caption",), ["Caption", "caption"]),
        (["captions", "context"], ("caption", "text"), []),
    ],
)
def test_the_exact_name_goes_first(have, wanted, expected):
    assert captions.columns(have, wanted) == expected


def test_json_values_keep_their_meaning():
    text = '{"a": [1, -2.5, 1e400, null, true, "\\u00e9"], "b": {"c": -123}}'
    assert captions.parse_json(text) == json.loads(text)


@pytest.mark.parametrize(
    "text, expected",
    [
        ("\ufeff \u200ba cat\u2060\x1a\t\u3000", "a cat"),
        ("👩\u200d🚀", "👩\u200d🚀"),
        ("\u2764\ufe0f", "\u2764\ufe0f"),  # ends with a variation selector
        ("🏴\U000e0067\U000e0062\U000e007f", "🏴\U000e0067\U000e0062\U000e007f"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("co\u00adop", "co\u00adop"),
        ("e\u0301", "e\u0301"),
        ("\U0001fae9", "\U0001fae9"),  # newer than the tables of older Pythons
        ("\ue000", "\ue000"),  # of somebody's own font
        ("\u200f\u200eשלום\u200e", "\u200f\u200eשלום\u200e"),
        *(
            (letter, "")
            for letter in "\u200b\ufeff\u00ad\u2060\u200d\u200c\ufe0f\u034f\u180e\u061c\u3164\u2800"
        ),
        *(
            (letter, "")
            for letter in "\x00\x07\x85\xa0\u2028\u3000\u115f\uffa0\u17b4\U000e0020\U000e0100\u0301"
        ),
        (" \u200b\ufeff\n\t", ""),
        ("", ""),
    ],
)
def test_captions_need_something_visible_and_keep_what_joins(text, expected):
    assert captions.stripped(text) == expected
