"""Shapes of stored documents: what their readers rely on, also where a checksum is right.

A checksum tells what was written from what was changed since, not a document of this project from
one that somebody else, or a release to come, has sealed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

Check: TypeAlias = Callable[[Any], bool]
Shape: TypeAlias = Mapping[str, Check]


def is_text(value: Any) -> bool:
    """Tell whether a value is text."""
    return isinstance(value, str)


def is_mapping(value: Any) -> bool:
    """Tell whether a value is an object of JSON."""
    return isinstance(value, Mapping)


def is_whole(value: Any) -> bool:
    """Tell whether a value is a whole number that a table can hold."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_count(value: Any) -> bool:
    """Tell whether a value is a number of things."""
    return is_whole(value) and 0 <= value < 2**31


def is_positive(value: Any) -> bool:
    """Tell whether a value is a number of things of which there is one at least."""
    return is_count(value) and value > 0


def optional(check: Check) -> Check:
    """Return a check that None passes too."""
    return lambda value: value is None or check(value)


def list_of(check: Check) -> Check:
    """Return a check of every member of a list."""
    return lambda value: isinstance(value, list) and all(map(check, value))


def object_of(required: Shape, further: Shape | None = None) -> Check:
    """Return a check of an object: it must have some keys, and may have others."""
    shape = {**required, **(further or {})}
    return lambda value: (
        is_mapping(value) and required.keys() <= value.keys() and fits(value, shape)
    )


def fits(document: Mapping[str, Any], shape: Shape) -> bool:
    """Tell whether each value that a shape knows is as it expects; a key may be absent."""
    return all(check(document[key]) for key, check in shape.items() if key in document)


def _is_dtype(value: Any) -> bool:
    return is_text(value) and value in {"float32", "uint8"}


def _is_file_name(value: Any) -> bool:
    return is_text(value) and "/" not in value


_TRAINED: Final = object_of(
    {
        "fold": is_count,
        "file": _is_file_name,
        "sha256": is_text,
        "trained_on": list_of(is_text),
    },
    {"trained_on_images": list_of(is_text)},
)
# By the name of the document; runs have shapes of their own, for what is unknown there is kept.
DOCUMENTS: Final[Mapping[str, Check]] = {
    "encoder.json": object_of(
        {
            "name": is_text,
            "fingerprint": is_text,
            "identity": object_of({"dim": is_positive}, {"dtype": _is_dtype}),
            "spec": object_of({}, {"weights": is_mapping, "preprocess": is_mapping}),
        }
    ),
    "encoders.json": object_of({"spec": is_mapping, "encoders": list_of(_TRAINED)}),
}
