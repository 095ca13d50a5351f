import collections
import dataclasses
import json

import numpy as np
import pytest

from imagen_jax.data import sources, transforms
from imagen_jax.prepare import parts, shape_captions
from imagen_jax.prepare.icons import captions, plan

CIRCLE = '<circle cx="8" cy="8" r="6" fill="#f80"/>'
STYLES = ("noto", "noto-v1", "fluent-emoji", "fluent-emoji-flat")
ANIMALS = {f"{0x1F400 + number:x}": f"animal-{number}" for number in range(12)}
ALL = {"unseen_subjects_fraction": 0.2, "unseen_pairs_fraction": 0.25, "validation_fraction": 0.1}
NONE = dict.fromkeys(ALL, 0.0)


@pytest.fixture
def four(write_set):
    """Four sets of twelve animals."""
    icons = {
        name: f'<circle cx="8" cy="8" r="{3 + i / 4}" fill="#f{i:x}0"/>'
        for i, name in enumerate(ANIMALS.values())
    }
    return [write_set(prefix, icons, chars=ANIMALS if prefix == "noto" else []) for prefix in STYLES]


def test_a_data_set_is_written_and_read(four, tmp_path):
    choices = plan.Choices(size=16, **ALL)
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
    found = plan.plan([write_set(icons=icons, chars=chars)], None, "cats", plan.Choices(**NONE))
    counts, left_out = parts.write(found, tmp_path / "out")
    assert counts == {"train": 3, "validation": 0, "unseen_subjects": 0, "unseen_pairs": 0}
    rows = [json.loads(line) for line in (tmp_path / "out" / "quarantine.jsonl").read_text().splitlines()]
    assert {row["file"]: row["reason"] for row in rows} == {
        "tiny:lion": "undecodable", "tiny:wolf": "undecodable", "tiny:fox": "no picture"
    }  # fmt: skip


def test_without_any_picture_the_icons_are_blamed(write_set, tmp_path):
    icons = {"tiger": {"body": CIRCLE, "hidden": True}}
    found = plan.plan([write_set(icons=icons)], None, "cats", plan.Choices(**NONE))
    with pytest.raises(ValueError, match="^--icons must have a usable picture for .*withdrawn from the set"):
        parts.write(found, tmp_path / "out")


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


def test_the_command_makes_the_data_set_once(write_set, tmp_path, load_script, caplog):
    command = load_script("prepare_data")
    folder = write_set(chars={"1f42f": "tiger"})
    chosen = dict(NONE, background="Black", size=8, skin_tones=True, accept_licence=("CC-BY-4.0",))
    options = command.Options(output=tmp_path / "out", icons=(folder,), **chosen)
    command.main(options)
    made = json.loads((tmp_path / "out" / "prepared.json").read_text())
    assert made["sets"][0]["style"] == "tiny" and made["icons"] == [str(folder)]
    notice = (tmp_path / "out" / "NOTICE").read_text()
    assert f"licence {made['sets'][0]['licence']}" in notice and "@iconify-json/tiny" in notice
    assert made["background"] == "#000000" and made["accept_licence"] == ["CC-BY-4.0"]
    folder.rename(tmp_path / "moved")
    command.main(dataclasses.replace(options, icons=(tmp_path / "moved",)))  # nothing to do
    with pytest.raises(ValueError, match="must be free; got a data set"):
        command.main(dataclasses.replace(options, icons=(tmp_path / "moved",), size=16))


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"shapes": "single"},
            "One of --input, --icons and --shapes must be given; got --shapes and --icons",
        ),
        (
            {"max_size": 64},
            "--max-size must be left out with --icons, where it has no effect; got 64",
        ),
        ({"unseen_pairs_fraction": 1.0}, r"--unseen-pairs-fraction must be in \[0, 1\); got 1.0"),
        ({"size": 0}, "--size must be at least 8; got 0"),
    ],
)
def test_wrong_options_are_refused_before_any_work(tmp_path, load_script, options, message):
    command = load_script("prepare_data")
    with pytest.raises(ValueError, match=message):
        command.main(command.Options(output=tmp_path / "out", icons=(tmp_path / "none.tgz",), **options))
    with pytest.raises(ValueError, match="--skin-tones must be left out with --shapes"):
        command.main(command.Options(output=tmp_path / "out", shapes="single", skin_tones=True))
    assert not list(tmp_path.iterdir())


def test_claims_of_icons_are_not_those_of_shapes(four, tmp_path, load_script):
    parts.write(plan.plan(four, None, "animals", plan.Choices(size=8, **ALL)), tmp_path / "data")
    sweep = load_script("sweep")
    options = {"workdir": tmp_path / "none", "data": tmp_path / "data", "split": "unseen_pairs"}
    captions_, claims, _ = sweep.read_prompts(sweep.Options(**options))
    assert len(captions_) == len(claims) > 0 and all(map(captions.are_claims, claims))
    assert not any(map(shape_captions.are_claims, claims)) and not captions.are_claims({"subject": "1f408"})
