import numpy as np
import pytest

from imagen_jax.text.captions import check_captions, shorten, unknown_message


@pytest.mark.parametrize(
    ("captions", "kind"),
    [
        (None, "NoneType"), (5, "int"), ({"a": 1}, "dict"), ({"a"}, "set"), (b"ab", "bytes"),
        ((caption for caption in "a"), "generator"), (np.array("a"), "ndarray"), (np.array([["a"]]), "ndarray"),
        ([["a"]], "list at index 0"), (np.zeros(2), "float64 at index 0"),
    ],
)  # fmt: skip
def test_what_is_no_list_of_captions_is_refused(captions, kind):
    with pytest.raises(TypeError, match=f"captions must be .*got {kind}"):
        check_captions(captions)


def test_captions_that_are_no_text_are_refused():
    with pytest.raises(ValueError, match="captions must hold at least one str; got an empty list"):
        check_captions([])
    with pytest.raises(ValueError, match="captions must be valid Unicode; got half a surrogate pair at index 1"):
        check_captions(["\U0001f43b", "\ud83d"])
    check_captions(("a", "\u5317\u4eac \U0001f43b", ""))
    check_captions(np.array(["a", "b"]))


def test_messages_show_the_first_captions_shortened():
    assert shorten("a" * 60) == repr("a" * 60) and shorten("a" * 61) == repr("a" * 57 + "...")
    message = unknown_message("tiny", ["x", "y", "z", "w"], 9)
    assert message.startswith("4 of 9 captions consist mostly of text that the tokenizer of tiny does not know")
    assert "'x', 'y', 'z': their" in message and "'w'" not in message
