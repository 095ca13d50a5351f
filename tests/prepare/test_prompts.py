"""Files of prompts as people write them."""

import pytest

from imagen_jax.prepare import prompts


@pytest.mark.parametrize(
    ("content", "expected", "skipped"),
    [
        (b"a star\n\n  a circle \r\n", ["a star", "a circle"], 0),
        (b"# shapes\na star\n  # indented\n#\n##\n", ["a star"], 4),
        (
            b"\\#1 in a row\n\\\\#2\na # within\n\\ alone\n",
            ["#1 in a row", "\\#2", "a # within", "\\ alone"],
            0,
        ),
        (b"\xef\xbb\xbf# with a byte order mark\na star", ["a star"], 1),
        ("# Sterne\nein Stern ⭐\n".encode("utf-16"), ["ein Stern ⭐"], 1),
        ("a\u2028b\x0cc\n".encode(), ["a\u2028b\x0cc"], 0),
        (b"a star\ra circle", ["a star", "a circle"], 0),
        ("\u200b\n\ufeff \na star".encode(), ["a star"], 0),
        (b"a\na\n", ["a", "a"], 0),
    ],
)
def test_prompts(tmp_path, content, expected, skipped):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    found, report = prompts.read(path)
    assert found == expected
    told = f"; {skipped} comment{'s' if skipped > 1 else ''} skipped" if skipped else ""
    assert report == f"{path}: {len(expected)} prompt{'s' if len(expected) > 1 else ''}{told}."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "--prompts-file .*prompts.txt must hold one prompt per line; got an empty file"),
        (b"\n \t\n\xe2\x80\x8b\n", "got an empty file"),
        (b"# a\n# b\n", "got only 2 lines that begin with #"),
        (b"a\nb\xff", "--prompts-file .*prompts.txt must be UTF-8; line 2"),
        ("a".encode("utf-16")[2:], "must be text; line 1 has a NUL"),
        (b"a" * (2**23 + 1), "must have at most"),
    ],
)
def test_what_holds_no_prompts_is_one_line(tmp_path, content, message):
    path = tmp_path / "prompts.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        prompts.read(path)
    assert "\n" not in str(caught.value)
