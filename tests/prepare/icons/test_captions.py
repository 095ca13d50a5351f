import pytest

from imagen_jax.prepare.icons import captions


@pytest.mark.parametrize(
    "name, phrase",
    [
        ("tiger", "a tiger"), ("owl", "an owl"), ("hourglass", "an hourglass"), ("unicorn", "a unicorn"),
        ("x-ray", "an x-ray"), ("OK hand", "an OK hand"), ("NG button", "an NG button"),
        ("Japanese castle", "a Japanese castle"),
        ("scissors", "scissors"), ("bus", "a bus"), ("compass", "a compass"), ("rhinoceros", "a rhinoceros"),
        ("hand with fingers splayed", "a hand with fingers splayed"), ("thumbs up", "thumbs up"),
        ("women holding hands", "women holding hands"), ("man lifting weights", "a man lifting weights"),
        ("sheaf of rice", "a sheaf of rice"), ("cooked rice", "cooked rice"), ("Aries", "Aries"), ("ZZZ", "ZZZ"),
        ("seven o'clock", "seven o'clock"), ("no entry", "no entry"), ("keycap 3", "keycap 3"),
        ("1st place medal", "1st place medal"), ("the flag of Japan", "the flag of Japan"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
    ],
)  # fmt: skip
def test_articles(name, phrase):
    assert captions.phrase(name) == phrase


@pytest.mark.parametrize(
    "label, name",
    [
        ("flag: Japan", "the flag of Japan"),
        ("man: bald", "bald man"),
        ("woman: dark skin tone, red hair", "woman, dark skin tone with red hair"),
        ("waving hand: light skin tone", "waving hand, light skin tone"),
        ("keycap: 3", "keycap 3"),
        ("family: man, woman, girl", "family: man, woman, girl"),
        ("Japanese “here” button", 'Japanese "here" button'),
        ("man’s shoe", "man's shoe"),
    ],
)
def test_labels_become_readable(label, name):
    assert captions.readable(label) == name


def test_captions_vary_and_begin_with_subject_and_style():
    tags = ["big", "cat", "tiger cub", "a", "g2g", "predator", "zoo"]
    found = captions.captions("tiger", "noto", ["bengal tiger"], tags)
    assert found[:3] == ("a tiger, noto style", "a tiger", "a bengal tiger in noto style")
    words = found[3].removeprefix("a tiger, ").removesuffix(", noto style").split(", ")
    assert len(words) == 3 and set(words) <= {"big", "cat", "predator", "zoo"}
    assert captions.captions("tiger", "noto", ["bengal tiger"], tags) == found
    drawn = {
        captions.captions("tiger", style, [], tags)[3].partition(", ")[2].rpartition(",")[0]
        for style in "abcdef"
    }
    assert len(drawn) > 1  # other styles show other keywords


def test_no_caption_is_repeated():
    assert captions.captions("tiger", "noto", [], []) == (
        "a tiger, noto style",
        "a tiger",
        "a tiger in noto style",
    )
