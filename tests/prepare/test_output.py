"""The directory of a data set while it is written: its name, its lock, its plan."""

import json

import pytest

from imagen_jax.prepare import output


@pytest.mark.parametrize(
    ("directory", "name"), [("My Cats-2", "my_cats_2"), ("2024", "data_2024"), ("été", "t"), ("--", "data_")]
)
def test_names_of_data_sets(tmp_path, directory, name):
    assert output.name_of(tmp_path / directory) == name


def test_one_run_at_a_time(tmp_path):
    place = output.unfinished(tmp_path / "out")
    with output.held(place, tmp_path / "out"):
        with pytest.raises(ValueError, match="^--output must be free; got .*out, which another run is writing"):
            output.held(place, tmp_path / "out").__enter__()
    with output.held(place, tmp_path / "out"):
        pass


def test_unfinished_work_goes_on_under_the_same_plan_alone(tmp_path):
    output.begin(tmp_path, {"min_size": 8, "files": "abc"})
    (tmp_path / "000001.json.tmp1").touch()
    output.begin(tmp_path, {"min_size": 8, "files": "abc"})
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    with pytest.raises(ValueError, match=r"work with other min_size \(min_size: 8 there, 9 now\): repeat"):
        output.begin(tmp_path, {"min_size": 9, "files": "abc"})
    with pytest.raises(ValueError, match="work with other files: repeat"):
        output.begin(tmp_path, {"min_size": 8, "files": "abd"})
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="plan.json must be JSON; got damaged content: delete"):
        output.begin(tmp_path, {"min_size": 8, "files": "abc"})


def test_a_part_is_done_when_its_files_are_complete(tmp_path):
    (tmp_path / "a").write_bytes(b"1234")
    row = {"split": "train", "file": "a", "size": 4, "records": 1, "bytes": 4}
    (tmp_path / "000003.json").write_text(json.dumps({"files": [row], "left_out": []}))
    assert output.is_done(tmp_path, 3) and not output.is_done(tmp_path, 4)
    (tmp_path / "a").write_bytes(b"123")
    assert not output.is_done(tmp_path, 3)
    (tmp_path / "000003.json").write_text(json.dumps({"files": [row | {"size": 3}]}))
    assert not output.is_done(tmp_path, 3)
