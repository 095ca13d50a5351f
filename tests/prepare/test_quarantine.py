"""Everything that is left out is counted."""


import numpy as np

from tests.prepare.conftest import archive, huge, prepare, random_picture


def test_whatever_is_in_the_pictures_all_are_counted(tmp_path, script):
    """Kept and left out together are what was found, for random damage of all sorts."""
    rng = np.random.default_rng(1)
    members, num = [], 60
    for i in range(num):
        data = bytearray(random_picture(i, ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")[i % 6]))
        kind = rng.integers(5)
        if kind == 1:
            data = data[: rng.integers(len(data))]
        elif kind == 2:
            for place in rng.integers(0, len(data), 5):
                data[place] = rng.integers(256)
        elif kind == 3:
            data = bytearray(
                [b"", b"text", huge(), huge(2**31 - 1, 2**31 - 1), random_picture(i, size=(3, 3))][i % 5]
            )
        members.append((f"{i}.jpg", bytes(data)))
        caption = [b"fine", b"", b"\xff", b'{"caption": [1]}'][rng.integers(4)]
        members.append((f"{i}.{'json' if caption.startswith(b'{') else 'txt'}", caption))
    archive(tmp_path / "in" / "x.tar", members)
    kept, left_out = prepare(script, tmp_path / "in", tmp_path / "out")
    assert len(kept) + len(left_out) == num and len({file for file, _ in left_out}) == len(left_out)
    reasons = {reason for _, reason in left_out}
    assert reasons == {"undecodable", "too small", "too large", "no caption", "unreadable caption"}
