import pytest

from imagen_jax.prepare.icons import names, sets

ENTRIES = [
    {"label": "alarm clock", "hexcode": "23F0", "tags": ["wake", "ring"]},
    {"label": "waving hand", "hexcode": "1F44B", "tags": ["hello"], "skins": [
        {"label": "waving hand: dark skin tone", "hexcode": "1F44B-1F3FF"}]},
    {"label": "nameless", "hexcode": "x"}, {"hexcode": "1F400"}, 3,
]  # fmt: skip


@pytest.fixture
def keywords(write_keywords):
    return names.read_keywords(write_keywords(ENTRIES))


def test_keywords_are_read(keywords):
    assert keywords.labels == {
        "23f0": "alarm clock", "1f44b": "waving hand", "1f44b-1f3ff": "waving hand: dark skin tone"
    }  # fmt: skip
    assert keywords.tags["23f0"] == ("wake", "ring") and keywords.tags["1f44b-1f3ff"] == ("hello",)
    assert keywords.about == {"name": "emojibase-data", "version": "17.0.0", "licence": "MIT"}


def test_labels_are_words(write_keywords):
    labels = {
        "1F415": "  ", "1F416": "family: ", "1F417": ": x", "1F418": "a\nbig  cat", "1F419": "x\0y", "1F41A": "\ud800",
        "1F41B": "a" * 501,
    }  # fmt: skip
    entries = [{"label": label, "hexcode": code, "tags": [label, 3]} for code, label in labels.items()]
    found = names.read_keywords(write_keywords(entries))
    assert found.labels == {"1f416": "family", "1f417": "x", "1f418": "a big cat"}
    assert found.tags == {code: (label,) for code, label in found.labels.items()}


@pytest.mark.parametrize("entries", [[], {}, [{"label": 3}]])
def test_other_packages_are_refused_as_keywords(write_keywords, entries):
    with pytest.raises(
        ValueError, match="--keywords must be npm's package emojibase-data; got .*without labels"
    ):
        names.read_keywords(write_keywords(entries))


def test_icons_are_joined_by_code_point(write_set, keywords):
    coded = sets.read(write_set("noto", {"tiger": "<g/>", "old-clock": "<g/>"}, chars={"1f42f": "tiger"}))
    squashed = ("alarmclock", "tiger", "tigerface", "cheesewedge", "foxweary", "roundpushpin")
    other = sets.read(write_set("fx", dict.fromkeys(squashed, "<g/>"), chars=[]))
    known = names.Names([other, coded], keywords)
    found = {icon.name: known.code(other, icon) for icon in other.icons}
    assert found == {
        "alarmclock": "23f0",  # by the label
        "tiger": "1f42f",  # by the name in the other set
        "tigerface": "1f42f", "cheesewedge": "1f9c0", "roundpushpin": "1f4cd",  # by the name in Unicode
        "foxweary": None,
    }  # fmt: skip
    assert known.label("23f0") == "alarm clock"
    assert known.label("1f42f") == "tiger"  # of the set, as the keywords have none
    assert known.label("1f9c0") == "cheese wedge"
    assert known.label("1f322") == ""  # "black droplet", which is blue
    assert known.label("1f469-200d-1f680") == ""


def test_a_set_is_believed_about_its_own_names(write_set, keywords):
    first = sets.read(write_set("one", {"bow": "<g/>"}, chars={"1f647": "bow"}))
    second = sets.read(write_set("two", {"bow": "<g/>"}, chars={"1f380": "bow"}))
    known = names.Names([first, second], keywords)
    assert [known.code(each, each.icons[0]) for each in (first, second)] == ["1f647", "1f380"]


def test_other_names_are_of_the_set_and_of_unicode(write_set, keywords):
    aliases = {
        "big-cat": {"parent": "tiger"},
        "flag-for-tiger": {"parent": "tiger"},
        "tiger-": {"parent": "tiger"},
    }
    found = sets.read(write_set("noto", chars={"1f42f": "tiger"}, aliases=aliases))
    assert names.Names([found], keywords).others("1f42f", found.icons[0]) == ["big cat", "tiger face"]
