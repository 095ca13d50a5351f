"""Captions of text encoders: their checks, and how messages show them."""

from collections.abc import Mapping, Sequence


class UnknownTokensWarning(UserWarning):
    """Captions that the tokenizer turns mostly into tokens for unknown text."""


def check_captions(captions: Sequence[str]) -> None:
    """Raise a TypeError or ValueError unless `captions` is a sequence of at least one str of valid Unicode."""
    if isinstance(captions, str):
        raise TypeError(f"captions must be a list of str; got the str {captions!r}: put it in [].")
    is_list = hasattr(captions, "__len__") and hasattr(captions, "__getitem__")
    if not is_list or isinstance(captions, bytes | bytearray | Mapping) or getattr(captions, "ndim", 1) != 1:
        raise TypeError(f"captions must be a list of str; got {type(captions).__name__}: pass a list.")
    if not len(captions):
        raise ValueError("captions must hold at least one str; got an empty list: pass some.")
    for i, caption in enumerate(captions):
        if not isinstance(caption, str):
            raise TypeError(
                f"captions must be str; got {type(caption).__name__} at index {i}: decode or convert it."
            )
        if not caption.isascii() and any("\ud800" <= char <= "\udfff" for char in caption):
            raise ValueError(
                f"captions must be valid Unicode; got half a surrogate pair at index {i} "
                f"({shorten(caption)}): decode it with errors='replace'."
            )


def unknown_message(name: str, unknown: Sequence[str], num: int) -> str:
    """Return the message about `unknown` of `num` captions that the encoder `name` cannot read."""
    first = ", ".join(map(shorten, unknown[:3]))
    return (
        f"{len(unknown)} of {num} captions consist mostly of text that the tokenizer of {name} does not know, such as "
        f"{first}: their embeddings hardly differ; rephrase them, or choose an encoder that reads them, such as "
        "google/mt5-base (most languages) or google/byt5-base (any text)."
    )


def shorten(caption: str) -> str:
    """Return a caption as messages show it."""
    return repr(caption if len(caption) <= 60 else caption[:57] + "...")
