"""Files appear whole or not at all, and nothing is replaced that should stay."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from imagen_jax.storage import files


@pytest.fixture
def full_disk(monkeypatch):
    """full_disk(call): the call of os named so fails as on a full disk."""

    def fill(call):
        def fail(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, call, fail)

    return fill


@pytest.mark.parametrize(
    ("content", "stored"),
    [(b"\x00\xff", b"\x00\xff"), ("ä\n", "ä\n".encode()), ("", b""), (b"x" * 10**6, b"x" * 10**6)],
)
@pytest.mark.parametrize("before", [None, b"old"])
def test_content_takes_the_place_of_the_old(tmp_path, content, stored, before):
    path = tmp_path / ("n" * 255)  # as long as a name may be
    if before is not None:
        path.write_bytes(before)
    files.write(path, content)
    assert path.read_bytes() == stored and os.listdir(tmp_path) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_json_and_links(tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to(tmp_path / "there" / "real.json")  # dangling at first
    for content in ({"a": [1, None]}, "second"):
        files.write_json(str(link), content)
        assert link.is_symlink() and os.listdir(tmp_path / "there") == ["real.json"]
    assert link.read_text() == '"second"\n'


@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("write", [files.write, files.replacing, files.write_json])
def test_a_full_disk_leaves_the_old_file_alone(tmp_path, full_disk, call, write):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    full_disk(call)
    with pytest.raises(OSError, match=r"a\.png cannot be written: No space left on device\.$") as caught:
        if write is files.replacing:
            with write(path) as file:
                file.write(b"new")
        else:
            write(path, "new")
    assert caught.value.errno == 28 and ".tmp-" not in str(caught.value)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize("write", [files.create, files.write_new])
def test_a_full_disk_makes_no_new_name(tmp_path, full_disk, monkeypatch, write):
    path = tmp_path / "a.png"
    full_disk("fsync")
    with pytest.raises(OSError, match="cannot be written: No space left"):
        write(path, b"new")
    assert not os.listdir(tmp_path)
    monkeypatch.undo()
    write(path, b"new")  # the name that the first would have had
    assert os.listdir(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, SystemExit, ValueError("from the block"), OSError("own")]
)
def test_what_ends_the_block_leaves_nothing(tmp_path, error):
    with pytest.raises(type(error) if isinstance(error, Exception) else error) as caught:
        with files.replacing(tmp_path / "a") as file:
            file.write(b"half")
            raise error
    assert not os.listdir(tmp_path) and "cannot be written" not in str(caught.value)


def make(path: Path, what: str) -> None:
    match what:
        case "directory":
            path.mkdir()
        case "FIFO":
            os.mkfifo(path)
        case "link to a device":
            path.symlink_to("/dev/null")
        case "link to itself":
            path.symlink_to(path)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("directory", "not a regular file"),
        ("FIFO", "not a regular file"),
        ("link to a device", "not a regular file"),
        ("link to itself", "not a regular file"),
    ],
)
def test_what_is_no_file_is_not_replaced(tmp_path, what, reason):
    path = tmp_path / "a"
    make(path, what)
    before = _identity(path)
    with pytest.raises(OSError, match=reason) as caught:
        files.write(path, b"new")
    assert "\n" not in str(caught.value)
    assert _identity(path) == before and os.listdir(tmp_path) == ["a"]


def _identity(path):
    """What a replacement would change; reading a link may change its access time."""
    stat = os.lstat(path)
    return stat.st_ino, stat.st_mode, stat.st_size, stat.st_mtime_ns


@pytest.mark.parametrize("below", ["missing/a", "file/a", "n" * 256])
def test_places_where_nothing_can_be(tmp_path, below):
    (tmp_path / "file").touch()
    for write in (files.write, files.create, files.write_new):
        with pytest.raises(OSError) as caught:
            write(tmp_path / below, b"")
        assert ".tmp-" not in str(caught.value)
    assert os.listdir(tmp_path) == ["file"]


def test_new_names(tmp_path):
    (tmp_path / "a-2.png").mkdir()
    (tmp_path / "a-4.png").symlink_to(tmp_path / "nowhere")
    names = [files.write_new(tmp_path / "a.png", str(i)).name for i in range(4)]
    assert names == ["a.png", "a-3.png", "a-5.png", "a-6.png"]
    assert [(tmp_path / name).read_text() for name in names] == list("0123")
    assert not files.create(tmp_path / "a.png", "other") and (tmp_path / "a.png").read_text() == "0"


@pytest.mark.parametrize("has_links", [True, False])
def test_writers_at_the_same_time_replace_nothing(tmp_path, monkeypatch, has_links):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(PermissionError(1, "no links")))
    written = []
    writers = [
        threading.Thread(
            target=lambda i=i: written.extend(
                (str(i), files.write_new(tmp_path / "grid.png", str(i))) for _ in range(5)
            )
        )
        for i in range(8)
    ]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    assert len({path for _, path in written}) == len(os.listdir(tmp_path)) == 40
    assert all(path.read_text() == content for content, path in written)


@pytest.mark.parametrize(
    ("below", "message"),
    [
        ("there", None),
        ("new/in/new", None),
        ("link to there", None),
        ("link to there/new", None),
        ("file", "must be a directory; got .*file, which is a file: name another"),
        ("file/new/below", "must be a directory; got .*file, above .*below, which is a file"),
        ("FIFO", "must be a directory; got .*FIFO, which is no directory"),
        ("link to a file", "is a link to what is no directory"),
        ("dangling", "is a link that leads nowhere"),
        ("loop", "is a link that leads nowhere"),
        ("dangling/new", "dangling, which is a link that leads nowhere"),
        ("n" * 256, "names of at most 255 bytes in a path .*; got nnn.*of 256 bytes: shorten it"),
        ("new/" + "ä" * 128, "names of at most 255 bytes in a path .* of 256 bytes"),
        ("a/" * 2000, "in a path that leaves room for a file's"),
        ("/dev/null", "must be a directory; got /dev/null, which is no directory"),
        ("/proc/new", "must be writable; got /proc, where /proc/new would be made, which is not"),
        ("/sys", "must be writable; got /sys, which is not"),
    ],
)
def test_directories_are_checked_and_not_made(tmp_path, below, message):
    (tmp_path / "there").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "FIFO")
    for link, target in {"to there": "there", "to a file": "file"}.items():
        (tmp_path / f"link {link}").symlink_to(tmp_path / target)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = sorted(tmp_path.rglob("*"))
    if message is None:
        files.check_directory(tmp_path / below, "--output")
    else:
        with pytest.raises(ValueError, match=f"^--output .*{message}") as caught:
            files.check_directory(tmp_path / below, "--output")
        assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("what", ["directory", "FIFO", "link to a device"])
def test_names_that_are_taken(tmp_path, what):
    (tmp_path / "a.md").touch()
    (tmp_path / "b.md").symlink_to(tmp_path / "a.md")
    files.check_directory(tmp_path, "--output", names=["a.md", "b.md", "c.md"])
    make(tmp_path / "a", what)
    with pytest.raises(
        ValueError, match="--output must be a place for the file a; got .*a, which is no file: move it away"
    ):
        files.check_directory(tmp_path, "--output", names=["a.md", "a"])


def test_room_on_the_disk(tmp_path):
    files.check_directory(tmp_path / "new", "--output", needed=1)
    with pytest.raises(
        ValueError, match="--output must have room for about 1.153e.18 MiB; got .* MiB on the disk of .*new: free"
    ):
        files.check_directory(tmp_path / "new", "--output", needed=2**80)


def test_a_signal_while_a_directory_is_tried_leaves_nothing(tmp_path):
    script = """
import os, signal, sys, time
from pathlib import Path
from imagen_jax import signals
from imagen_jax.storage import files
signals.install()
def interrupted(path, *, unlink=Path.unlink, calls=[], **options):
    calls.append(path)
    if len(calls) == 1:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    unlink(path, **options)
Path.unlink = interrupted
files.check_directory(sys.argv[1], "--output")
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "new")], capture_output=True, text=True)
    assert done.returncode == 128 + 15, done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "slug"),
    [
        ("A red circle, left of a star!", "a-red-circle-left-of-a-star"),
        ("日本語 🐼", "日本語"),
        ("u\u0308ber snake_case", "über-snake-case"),
        ("../..", "prompt"),
        ("", "prompt"),
        ("🐼", "prompt"),
        ("語" * 40, "語" * 20),
        ("a" * 59 + "語", "a" * 59),
    ],
)
def test_words_of_file_names(text, slug):
    assert files.slug(text) == slug
