"""Parts: the same data set for any number of workers, kills and failures; finished parts are kept."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imagen_jax.data import sources
from imagen_jax.prepare import folder, parts, pictures
from imagen_jax.prepare.output import is_done
from imagen_jax.storage.locks import acquire_file_lock
from tests.conftest import ROOT

NUM = 24
OPTIONS = {"min_size": 8, "validation_fraction": 0.3, "name": "photos"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Pictures with captions, two of them broken, and other things that are left out."""
    root = tmp_path_factory.mktemp("photos")
    for i in range(NUM):
        pixels = np.random.default_rng(i).integers(0, 255, (9, 10, 3), np.uint8)
        Image.fromarray(pixels).save(root / f"{i:02d}.png")
        (root / f"{i:02d}.txt").write_text(f"{i} one\n{i} two")
    (root / "03.png").write_bytes(b"broken")
    (root / "20.png").write_bytes(b"broken")
    (root / "alone.txt").write_text("alone")
    return root


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(folder, "PART", 4)
    monkeypatch.setattr("imagen_jax.prepare.output.JOINED_RECORDS", 10)
    monkeypatch.setattr(parts, "FEW", 0)


@pytest.fixture(scope="module")
def whole(script, photos, tmp_path_factory):
    """What an uninterrupted run in one process makes of the photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "PART", 4)
        patch.setattr("imagen_jax.prepare.output.JOINED_RECORDS", 10)
        directory = tmp_path_factory.mktemp("whole") / "out"
        prepare(script, photos, directory)
    return files(directory)


def prepare(script, root, output, num_workers=1, **options):
    script.main(script.Options(output=output, input=root, num_workers=num_workers, **OPTIONS | options))


def files(output):
    return {path.name: path.read_bytes() for path in output.iterdir()}


def killed(photos, output, before, num_workers=1):
    """Starts the script in a process of its own, with `before` run in it first."""
    code = f"""
import os, runpy, signal, sys
from imagen_jax.prepare import folder, output, parts
folder.PART, output.JOINED_RECORDS, parts.FEW = 4, 10, 0
{before}
if __name__ == "__main__":
    sys.argv = ["prepare_data.py", "--input", {str(photos)!r}, "--output", {str(output)!r}, "--name", "photos",
        "--min-size", "8", "--validation-fraction", "0.3", "--num-workers", "{num_workers}"]
    runpy.run_path({str(ROOT / "scripts" / "prepare_data.py")!r}, run_name="__main__")
"""
    return subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True
    )


@pytest.mark.slow
def test_any_number_of_workers_makes_the_same(script, photos, whole, tmp_path, capsys):
    prepare(script, photos, tmp_path / "out", num_workers=3)
    assert files(tmp_path / "out") == whole and os.listdir(tmp_path) == ["out"]
    assert "Left out 3: caption without picture: 1 (first: alone.txt)" in capsys.readouterr().out
    assert "photos-train.array_record-00001" in whole  # neighbours are joined, but not all
    captions = [
        caption
        for split in ("train", "validation")
        for caption in sources.captions(sources.open_source(tmp_path / "out", split))
    ]
    kept = [i for i in range(NUM) if i not in (3, 20)]
    assert sorted(captions) == sorted(f"{i} {word}" for i in kept for word in ("one", "two"))


@pytest.mark.slow
def test_killed_it_goes_on_where_it_was(script, photos, whole, tmp_path, monkeypatch):
    output = tmp_path / "out"
    before = """
write = parts._write_part
def kill(job, part, number, place):
    if number == 3:
        parts.os.replace = lambda *paths: os.kill(os.getpid(), signal.SIGKILL)  # with its records written
    write(job, part, number, place)
parts._write_part = kill
"""
    assert killed(photos, output, before).wait() == -signal.SIGKILL
    place = parts.unfinished(output)
    finished = {path.name: path.stat().st_mtime_ns for path in place.glob("*.json")}
    assert sorted(finished) == ["000000.json", "000001.json", "000002.json", "plan.json"]
    assert list(place.glob("000003*.tmp*")) and not output.exists()

    again, write = [], parts._write_part
    monkeypatch.setattr(parts, "_write_part", lambda *a: again.append(a[2]) or write(*a))
    prepare(script, photos, output)
    assert again == [3, 4, 5]
    assert files(output) == whole and os.listdir(tmp_path) == ["out"]


@pytest.mark.slow
def test_workers_end_with_their_parent(script, photos, whole, tmp_path):
    output = tmp_path / "out"
    # In a file of its own, as workers import the class of the job.
    (tmp_path / "slow.py").write_text(f"""
import os, time
from imagen_jax.prepare import folder
class Slow(folder.Folder):
    def read(self, part):
        open({str(tmp_path)!r} + f"/pid-{{os.getpid()}}", "w").close()
        for item in super().read(part):
            time.sleep(0.3)
            yield item
""")
    begin = f"sys.path.insert(0, {str(tmp_path)!r})\nimport slow\nfolder.Folder = slow.Slow"
    process = killed(photos, output, begin, num_workers=2)
    place, deadline = parts.unfinished(output), time.time() + 60
    while not list(place.glob("0*.json")):
        assert time.time() < deadline and process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    workers = [int(path.name[4:]) for path in tmp_path.glob("pid-*")]
    assert len(workers) == 2
    while any(Path(f"/proc/{pid}").exists() for pid in workers):
        assert time.time() < deadline
        time.sleep(0.02)
    assert not output.exists() and len(list(place.glob("0*.json"))) < 6
    prepare(script, photos, output)
    assert files(output) == whole


def test_stopped_at_any_step_of_the_end_it_goes_on(script, photos, whole, tmp_path, monkeypatch):
    """Renames are the steps: each time another one is the last."""
    output, rename, replace = tmp_path / "out", os.rename, os.replace
    left = [0]

    def counted(step, *paths):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        step(*paths)

    stops = 0
    while True:
        left[0] = 4  # fewer than are needed
        monkeypatch.setattr(os, "rename", lambda *paths: counted(rename, *paths))
        monkeypatch.setattr(os, "replace", lambda *paths: counted(replace, *paths))
        try:
            prepare(script, photos, output)
            break
        except KeyboardInterrupt:
            assert not output.exists()
            stops += 1
    assert files(output) == whole and stops > 3 and os.listdir(tmp_path) == ["out"]


def test_a_failure_stops_in_one_line_and_keeps_what_is_finished(script, photos, whole, tmp_path, monkeypatch):
    output = tmp_path / "out"
    read = folder.Folder.read

    def broken(self, part):
        if part.what[0][0] == "08.png":
            raise KeyError("a bug")
        return read(self, part)

    monkeypatch.setattr(folder.Folder, "read", broken)
    with pytest.raises(
        OSError, match="The part 08.png and on failed, KeyError: 'a bug'; finished parts are kept"
    ):
        prepare(script, photos, output)
    monkeypatch.setattr(folder.Folder, "read", read)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, before[1]))  # like a full disk
    try:
        with pytest.raises(OSError, match="cannot be written.*too large"):
            prepare(script, photos, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    place = parts.unfinished(output)
    assert not list(place.glob("*.tmp*")) and (place / "000001.json").exists()
    prepare(script, photos, output)
    assert files(output) == whole


def test_other_work_is_refused_and_left_alone(script, photos, tmp_path, monkeypatch):
    output, place = tmp_path / "out", parts.unfinished(tmp_path / "out")
    write = parts._write_part
    monkeypatch.setattr(parts, "_write_part", lambda *a: write(*a) if a[2] < 2 else 1 / 0)
    with pytest.raises(OSError, match="ZeroDivisionError"):
        prepare(script, photos, output)
    before = {path.name: path.stat().st_mtime_ns for path in place.glob("0*")}
    assert len(before) >= 4
    changed = (
        r"with other max_size, min_size \(max_size: 2048 there, 99 now; min_size: 8 there, 9 now\): repeat"
    )
    with pytest.raises(ValueError, match=changed):
        prepare(script, photos, output, min_size=9, max_size=99)
    times = os.stat(photos / "04.txt")
    (photos / "04.txt").write_text("4 changed")
    with pytest.raises(ValueError, match="with other files: repeat"):
        prepare(script, photos, output)
    (photos / "04.txt").write_text("4 one\n4 two")
    os.utime(photos / "04.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    with (place / "lock").open("w") as file:
        assert acquire_file_lock(file)
        with pytest.raises(ValueError, match="out, which another run is writing"):
            prepare(script, photos, output)
    assert {path.name: path.stat().st_mtime_ns for path in place.glob("0*")} == before


def test_an_empty_split_loses_nothing_that_is_finished(script, photos, tmp_path, monkeypatch):
    output, place = tmp_path / "out", parts.unfinished(tmp_path / "out")
    with pytest.raises(
        ValueError,
        match="--test-fraction must give the split 'test' .* of 24 pictures; got 0.001: give for example 0.12,",
    ):
        prepare(script, photos, output, test_fraction=0.001)
    assert not place.exists()
    message = f"got none of 44 with --test-fraction 0.03: give for example 0.068.*delete {place} .left"
    split_of = pictures.split_of
    monkeypatch.setattr(pictures, "split_of", lambda image, validation, test: split_of(image, validation, 0))
    write = parts._write_part
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            prepare(script, photos, output, test_fraction=0.03)
        assert len(list(place.glob("0*.json"))) == 6
        monkeypatch.setattr(parts, "_write_part", None)  # nothing is made again
    monkeypatch.setattr(parts, "_write_part", write)
    (place / "000002.json").write_text("{")  # is made again
    with pytest.raises(ValueError, match=message):
        prepare(script, photos, output, test_fraction=0.03)
    assert is_done(place, 2)
    (place / "000002.json").write_text('{"files": [{}], "left_out": []}')
    (place / "written").touch()
    with pytest.raises(ValueError, match="000002.json must list files; got damaged.*delete"):
        prepare(script, photos, output, test_fraction=0.03)
    assert len(list(place.glob("0*.json"))) == 6


def test_where_no_data_set_can_stand_is_said_before_any_work(script, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "write", None)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="--output must be a directory; got .*file, above .*out.*, which is a file"):
        prepare(script, photos, tmp_path / "file" / "out")
    with pytest.raises(ValueError, match="got the mount point /proc|not empty"):
        prepare(script, photos, Path("/proc"))
    with monkeypatch.context() as patch:
        patch.setattr(os.path, "ismount", lambda path: str(path) == str(tmp_path / "disk"))
        (tmp_path / "disk").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "disk")
        with pytest.raises(ValueError, match="got the mount point .*link: name a directory in it"):
            prepare(script, photos, tmp_path / "link")
    with pytest.raises(ValueError, match="--output must have names of at most 255 bytes"):
        prepare(script, photos, tmp_path / ("n" * 250))  # too long with what is added while it is unfinished

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ValueError, match="--output must be writable; got .*out.* would be made, which is not"):
        prepare(script, photos, tmp_path / "new" / "out")
    assert sorted(os.listdir(tmp_path)) == ["disk", "file", "link"]


def test_a_link_is_filled_where_it_leads(script, photos, whole, tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "photos")
    prepare(script, photos, tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and os.listdir(tmp_path / "disk") == ["photos"]
    assert files(tmp_path / "disk" / "photos") == whole


def test_what_a_kill_at_the_very_end_leaves_is_removed(script, photos, tmp_path, capsys):
    output = tmp_path / "out"
    nums = {"num_train": 3, "num_validation": 2, "num_test": 0}
    shapes = script.Options(output=output, shapes="single", num_workers=1, **nums)
    script.main(shapes)
    parts.unfinished(output).mkdir()
    script.main(shapes)
    assert capsys.readouterr().out.endswith("is already there, nothing to do.\n")
    assert os.listdir(tmp_path) == ["out"]
    assert json.loads((output / "prepared.json").read_text())["num_train"] == 3
