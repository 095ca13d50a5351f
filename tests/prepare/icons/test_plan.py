import collections
import json

import numpy as np
import pytest

from imagen_jax.data import sources, transforms
from imagen_jax.prepare import parts
from imagen_jax.prepare.icons import plan, splits

CIRCLE = '<circle cx="8" cy="8" r="6" fill="#f80"/>'
STYLES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat")
ANIMALS = {f"{0x1F400 + number:x}": f"animal-{number}" for number in range(12)}
ALL = splits.Fractions(0.2, 0.25, 0.1)


@pytest.fixture
def four(write_set):
    """Four sets of twelve animals."""
    icons = {
        name: f'<circle cx="8" cy="8" r="{3 + i / 4}" fill="#f{i:x}0"/>'
        for i, name in enumerate(ANIMALS.values())
    }
    return [write_set(prefix, icons, chars=ANIMALS if prefix == "noto" else []) for prefix in STYLES]


def test_a_data_set_is_written_and_read(four, tmp_path):
    choices = plan.Choices(size=16, fractions=ALL)
    found = plan.plan(four, None, "animals", choices)
    counts, left_out = parts.write(found, tmp_path / "out")
    assert not left_out.counts and set(counts) == {"train", "validation", "unseen_subjects", "unseen_pairs"}
    seen = collections.defaultdict(set)
    for split in sources.splits(tmp_path / "out"):
        source = sources.open_source(tmp_path / "out", split)
        for record in source.read(range(len(source))):
            claims = json.loads(record["claims"])
            assert set(claims) == {"subject", "name", "style"}
            seen[split].add((claims["style"], claims["subject"]))
            picture = transforms.decode(record["image"])
            assert picture.shape == (16, 16, 3) and (picture[0, 0] == 255).all()
            if split != "train":
                assert record["caption"] == f"an {claims['name']}, {claims['style']} style"
    assert sum(map(len, seen.values())) == 48 and len(set.union(*seen.values())) == 48
    subjects = {subject for _, subject in seen["unseen_subjects"]}
    assert subjects.isdisjoint({subject for _, subject in seen["train"]})


def test_settings_say_whose_artwork_it_is(four):
    settings = plan.plan(four[:1], None, "animals", plan.Choices()).settings
    (about,) = settings["sets"]
    assert about["licence"] == "MIT" and about["author"] == "Ada" and about["version"] == "1.2.3"
    assert about["pictures"] == about["icons"] == 12 and about["style"] == "noto"
    json.dumps(settings)


def test_parts_are_of_all_styles_and_do_not_depend_on_the_order_of_the_sets(four):
    first = plan.plan(four, None, "animals", plan.Choices())
    again = plan.plan(four[::-1], None, "animals", plan.Choices())
    assert first.parts == again.parts and first.settings["files"] == again.settings["files"]
    assert len({picture.file.partition(":")[0] for picture in first.parts[0].what[:12]}) > 2


def test_what_is_left_out_is_told(write_set, write_keywords):
    names = {
        "waving-hand": "1f44b", "waving-hand-dark": "1f44b-1f3ff", "dark": "1f3ff", "letter": "1f1e6",
        "mystery": "10fffe", "hand": "1f44b",
    }  # fmt: skip
    icons = dict.fromkeys([*names, "foxweary"], CIRCLE)
    folder = write_set(icons=icons, chars={code: name for name, code in names.items() if name != "hand"})
    label = {"label": "waving hand", "hexcode": "1F44B"}
    keywords = write_keywords([label, {"label": "hand", "hexcode": "1f44b"}])
    found = plan.plan([folder], keywords, "hands", plan.Choices())
    reasons = {row.file: row.reason for row in found.left_out}
    assert reasons == {
        "tiny:waving-hand-dark": "skin tone", "tiny:dark": "part of others", "tiny:letter": "part of others",
        "tiny:hand": "duplicate key", "tiny:foxweary": "no code point",
    }  # fmt: skip
    with_tones = plan.plan([folder], keywords, "hands", plan.Choices(skin_tones=True))
    assert "tiny:waving-hand-dark" not in {row.file for row in with_tones.left_out}


def test_pictures_that_cannot_be_rendered_are_quarantined(write_set, tmp_path):
    chars = {"1f42f": "tiger", "1f981": "lion", "1f43a": "wolf", "1f98a": "fox"}
    icons = {"tiger": CIRCLE, "lion": "<circle", "wolf": '<image href="/etc/passwd"/>', "fox": "<g/>"}
    found = plan.plan(
        [write_set(icons=icons, chars=chars)], None, "cats", plan.Choices(fractions=splits.Fractions(0, 0, 0))
    )
    counts, left_out = parts.write(found, tmp_path / "out")
    assert counts == {"train": 3, "validation": 0, "unseen_subjects": 0, "unseen_pairs": 0}
    rows = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["file"]: row["reason"] for row in rows} == {
        "tiny:lion": "undecodable", "tiny:wolf": "undecodable", "tiny:fox": "no picture"
    }  # fmt: skip


def test_the_background_and_the_size_are_chosen(write_set):
    folder = write_set(chars={"1f42f": "tiger"})
    for background, value in (("black", 0), ("#102030", (16, 32, 48)), ("White", 255)):
        found = plan.plan([folder], None, "cats", plan.Choices(size=8, background=background))
        _, record = next(found.job.examples(found.parts[0]))
        picture = transforms.decode(record["image"])
        assert picture.shape == (8, 8, 3) and np.array_equal(picture[0, 0], np.broadcast_to(value, 3))


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"size": 7}, "--size must be at least 8; got 7"),
        ({"size": 4096}, "--size must be at most 1024; got 4096"),
        (
            {"background": "reddish"},
            "--background must be one of white, black, grey or a colour such as .*; got",
        ),
    ],
)
def test_wrong_choices_are_refused(choices, message):
    with pytest.raises(ValueError, match=message):
        plan.Choices(**choices)


def test_a_set_is_given_once(write_set):
    with pytest.raises(ValueError, match="--icons must be different sets; got tiny twice"):
        plan.plan([write_set(), write_set()], None, "cats", plan.Choices())
