"""Types and scalars of Arrow that may hold pictures and texts: dictionaries, extension types, structs and lists."""

from __future__ import annotations

import re

_BYTES = ("binary", "large_binary", "binary_view", "fixed_size_binary")


def plain(scalar):
    """Return the value of a scalar of a dictionary or an extension type."""
    while hasattr(scalar, "value") and (
        hasattr(scalar, "dictionary") or hasattr(scalar.type, "storage_type")
    ):
        scalar = scalar.value
    return scalar


def picture_bytes(scalar):
    """Return pyarrow's buffer of a picture; None if there is none."""
    scalar = plain(scalar)
    if scalar is None or not scalar.is_valid:
        return None
    if hasattr(scalar, "keys"):
        return picture_bytes(scalar["bytes"])
    return scalar.as_buffer()


def value_of(scalar):
    """Return the Python value of a scalar, None if there is none."""
    scalar = plain(scalar)
    return scalar.as_py() if scalar is not None else None


def storage(kind):
    """Return the type of the values of a dictionary or extension type."""
    while hasattr(kind, "index_type") or hasattr(kind, "storage_type"):
        kind = kind.value_type if hasattr(kind, "index_type") else kind.storage_type
    return kind


def _picture_type(kind):
    """Return the type of the field "bytes" of a struct, None if it has none; other types unchanged."""
    if not is_any(kind, "struct"):
        return kind
    place = kind.get_field_index("bytes")
    return kind.field(place).type if place >= 0 else None


def is_dictionary(kind) -> bool:
    """Whether pictures are dictionary-encoded."""
    return hasattr(_picture_type(kind), "index_type")


def holds_pictures(kind) -> bool:
    """Whether a column may hold pictures; a column without any value has the type null."""
    return is_any(storage(_picture_type(kind)), "null", *_BYTES)


def holds_bytes(kind) -> bool:
    """Whether the values of a column are bytes."""
    return is_any(kind, *_BYTES)


def holds_text(kind) -> bool:
    """Whether a column may hold texts or lists of texts."""
    kind = storage(getattr(kind, "value_type", kind))  # of a list
    return is_any(kind, "string", "large_string", "string_view", "null")


def is_any(kind, *names: str) -> bool:
    """Whether a type of Arrow has one of these names, whatever its parameters."""
    return re.split(r"[<\[]", str(kind))[0] in names
