import json

import pytest

from imagen_jax.prepare.icons import sets

BODY = "<circle/>"


def test_a_set_is_read(write_set, packed):
    folder = write_set(
        "fluent-emoji-flat",
        {"tiger": BODY, "wide": {"body": BODY, "width": 32, "left": -4}},
        chars={"1F42F": "tiger", "bad": 3, "..": "tiger"},
        aliases={"big-cat": {"parent": "tiger"}},
    )
    for path in (folder, packed(folder)):
        found = sets.read(path)
        assert [icon.name for icon in found.icons] == ["tiger", "wide"] and not found.left_out
        assert found.icons[0] == sets.Icon("tiger", BODY, (0, 0, 16, 16), ("big-cat",))
        assert found.icons[1].box == (-4, 0, 32, 16)
        assert found.style == "fluent flat" and found.codes == {"tiger": "1f42f"}
        assert found.about == {
            "prefix": "fluent-emoji-flat", "title": "Tiny", "version": "1.2.3", "licence": "MIT",
            "licence_url": "https://ada.example/licence", "author": "Ada", "author_url": "https://ada.example",
        }  # fmt: skip


def test_an_unknown_set_names_its_own_style(write_set):
    assert sets.read(write_set("flat-color-icons")).style == "flat color icons"


def test_what_is_no_text_is_left_out(write_set):
    chars = {"1f42f": "tiger", "1f408": "-", "1f981": "li\ud800on"}
    found = sets.read(write_set(chars=chars, info={"license": {"spdx": "MIT"}, "name": "a\nb\0"}))
    assert found.codes == {"tiger": "1f42f"} and found.about["title"] == ""


@pytest.mark.parametrize("chars", [None, [], {}, "x"])
def test_chars_may_be_missing(write_set, chars):
    assert sets.read(write_set(chars=chars)).codes == {}


@pytest.mark.parametrize(
    "name, icon, reason, detail",
    [
        ("../../etc", BODY, "unusable icon", "lower-case words"),
        ("Tiger", BODY, "unusable icon", "lower-case words"),
        ("a" * 201, BODY, "unusable icon", "lower-case words"),
        ("tiger", "", "unusable icon", "no body"),
        ("tiger", {"body": 3}, "unusable icon", "no body"),
        ("tiger", ["x"], "unusable icon", "no body"),
        ("tiger", {"body": "x" * (sets.MAX_BODY + 1)}, "unusable icon", "characters, more than"),
        ("tiger", {"body": BODY, "width": 0}, "unusable icon", "view box"),
        ("tiger", {"body": BODY, "width": 1e300}, "unusable icon", "view box"),
        ("tiger", {"body": BODY, "height": float("nan")}, "unusable icon", "view box"),
        ("tiger", {"body": BODY, "left": True}, "unusable icon", "view box"),
        ("tiger", {"body": BODY, "hidden": True}, "hidden icon", "withdrawn"),
    ],
)
def test_unusable_icons_are_left_out(write_set, name, icon, reason, detail):
    found = sets.read(write_set(icons={name: icon, "lion": BODY}))
    assert [icon.name for icon in found.icons] == ["lion"]
    (row,) = found.left_out
    assert row.file.startswith(f"tiny:{name}"[:20]) and row.reason == reason and detail in row.detail


def test_aliases_of_another_picture_are_left_out(write_set):
    aliases = {"left": {"parent": "tiger", "hFlip": True}, "odd": {"parent": "none"}, "odder": 3}
    aliases |= {"old": {"parent": "tiger", "hidden": True}, "part": {"parent": "tiger", "width": 8}}
    found = sets.read(write_set(aliases=aliases))
    reasons = ["mirrored icon", "unusable icon", "unusable icon", "hidden icon", "unusable icon"]
    assert [row.reason for row in found.left_out] == reasons and found.icons[0].other_names == ()


def test_aliases_of_aliases(write_set):
    aliases = {"cat": {"parent": "big-cat"}, "big-cat": {"parent": "tiger"}, "tiger": {"parent": "lion"}}
    aliases |= {"left": {"parent": "tiger", "hFlip": True}, "turned": {"parent": "left"}}
    aliases |= {"one": {"parent": "two"}, "two": {"parent": "one"}}
    found = sets.read(write_set(aliases=aliases))
    assert [icon.name for icon in found.icons] == ["tiger"] and found.icons[0].other_names == ("cat", "big-cat")
    reasons = [(row.file.partition(":")[2], row.reason) for row in found.left_out]
    circle = [("one", "unusable icon"), ("two", "unusable icon")]
    assert reasons == [("left", "mirrored icon"), ("turned", "mirrored icon"), *circle]


@pytest.mark.parametrize(
    "info, licence",
    [
        ({"license": {"spdx": "CC-BY-SA-4.0"}}, "CC-BY-SA-4.0: --accept-licence CC-BY-SA-4.0 allows it"),
        ({"license": "MIT"}, "none stated: use another set"),
        (None, "none stated"),
        ([], "none stated"),
    ],
)
def test_licences_are_checked(write_set, info, licence):
    folder = write_set(info=info)
    with pytest.raises(
        ValueError, match=f"--icons must have a licence of .*MIT.*; got .*tiny with {licence}"
    ):
        sets.read(folder, [""])
    if "allows" in licence:
        assert sets.read(folder, ["CC-BY-SA-4.0"]).about["licence"] == "CC-BY-SA-4.0"


@pytest.mark.parametrize("content", ["[]", "{}", '{"icons": {}}', '{"prefix": "../x", "icons": {"a": {}}}'])
def test_other_formats_are_refused(write_set, content):
    folder = write_set()
    (folder / "icons.json").write_text(content)
    with pytest.raises(ValueError, match="--icons must be icon sets in Iconify's format; got .*tiny with an"):
        sets.read(folder)
    (folder / "icons.json").unlink()
    with pytest.raises(ValueError, match="tiny with no icons.json: fetch one with npm pack"):
        sets.read(folder)


def test_info_may_be_in_icons_json(write_set):
    folder = write_set(info=None)
    content = json.loads((folder / "icons.json").read_text()) | {"info": {"license": {"spdx": "ISC"}}}
    (folder / "icons.json").write_text(json.dumps(content))
    assert sets.read(folder).about["licence"] == "ISC"
