"""Archives of every state: what lies before damage is used, and nothing takes all memory."""

import tarfile

import numpy as np

from imagen_jax.prepare import tar_index
from tests.prepare.conftest import archive, prepare, random_picture


def test_nothing_behind_an_end_mark_is_lost_silently(tmp_path, script):
    good = [random_picture(i, size=(40, 40)) for i in range(6)]
    members = [(f"{i}.{e}", c) for i in range(6) for e, c in (("txt", b"%d" % i), ("png", good[i]))]
    one = archive(tmp_path / "one.tar", members[:6]).read_bytes()
    two = archive(tmp_path / "two.tar", members[6:]).read_bytes()
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.tar").write_bytes(one + two)
    kept, left_out = prepare(script, tmp_path / "a", tmp_path / "out_a")
    assert [caption for caption, _ in kept] == list("012345") and not left_out

    whole = archive(tmp_path / "b" / "x.tar", members).read_bytes()
    with tarfile.open(tmp_path / "b" / "x.tar") as tar:
        places = [member.offset for member in tar]
    hole = bytearray(whole)
    hole[places[4] : places[7] + 600] = bytes(places[7] + 600 - places[4])  # ends within a picture
    (tmp_path / "b" / "x.tar").write_bytes(hole)
    kept, left_out = prepare(script, tmp_path / "b", tmp_path / "out_b")
    assert [caption for caption, _ in kept] == ["0", "1"] and left_out == [("x.tar", "damaged archive")]

    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "x.tar").write_bytes(whole[: places[6]] + bytes(30 * 1024))
    kept, left_out = prepare(script, tmp_path / "c", tmp_path / "out_c")
    assert [caption for caption, _ in kept] == list("012") and left_out == [("x.tar", "damaged archive")]


def test_a_member_with_holes_does_not_cost_the_others(tmp_path, script):
    good = [random_picture(i) for i in range(3)]
    archive(
        tmp_path / "in" / "x.tar",
        [(f"{i}.{e}", c) for i in (0, 2) for e, c in (("txt", b"x"), ("png", good[i]))],
    )
    data = (tmp_path / "in" / "x.tar").read_bytes()
    info = tarfile.TarInfo("1.png")
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    head[386:410] = b"%011o\0%011o\0" % (2**30, 512)  # one piece, far behind a hole
    head[483:495] = b"%011o\0" % (2**30 + 512)
    head[148:156] = b"%06o\0 " % sum(head[:148] + b" " * 8 + head[156:])
    (tmp_path / "in" / "x.tar").write_bytes(bytes(head) + bytes(range(256)) * 2 + data)
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert kept == [("x", good[0]), ("x", good[2])] and left_out == [("x.tar:1.png", "unreadable file")]


def test_of_a_damaged_archive_what_lies_before_stays(tmp_path, script):
    good = [random_picture(i) for i in range(6)]
    members = [(f"{i}.{e}", c) for i in range(6) for e, c in (("txt", b"%d" % i), ("png", good[i]))]
    whole = archive(tmp_path / "x.tar", members).read_bytes()
    headers = [whole.index(f"{i}.png\0".encode()) for i in range(6)]
    rng = np.random.default_rng(0)
    cuts = [*rng.integers(headers[1] + 1024, len(whole) - 10240, 12), headers[3], headers[3] + 512]
    ends = [header + 512 + len(image) for header, image in zip(headers, good, strict=True)]
    cases = [(whole[:cut], sum(end <= cut for end in ends)) for cut in cuts]
    cases.append((whole[: headers[4] + 3] + b"\xff" + whole[headers[4] + 4 :], 4))  # a wrong checksum
    for content, readable in cases:
        (tmp_path / "x.tar").write_bytes(content)
        groups, damage = tar_index.index(tmp_path / "x.tar", "x.tar")
        assert [row.reason for row in damage] == ["damaged archive"]
        assert [key for key, found in groups if "png" in found] == [str(i) for i in range(readable)]
    archive(tmp_path / "in" / "sound.tar", members)
    (tmp_path / "in" / "cut.tar").write_bytes(whole[: headers[3] + 600])
    (tmp_path / "in" / "no.tar").write_bytes(b"no archive")
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert [caption for caption, _ in kept] == [*"012", *"012345"]
    assert left_out == [
        ("cut.tar:3.txt", "caption without picture"),
        ("cut.tar", "damaged archive"),
        ("no.tar", "damaged archive"),
    ]
