"""Cells of the label column: several labels in one, and what looks like no label at all."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import RunError
from embedcache.visible import is_invisible

# What programs write where there is no value, in lower case. A '-' says that no label applies.
_MISSING: Final = frozenset(
    {"nan", "na", "n/a", "n.a.", "none", "null", "nil", "nat", "<na>", "#n/a", "#na", "missing"}
    | {"undefined", "not available", "not applicable", "?", "--", ".", "_", ""}
)


def looks_missing(label: str) -> bool:
    """Return whether a label that is not empty looks like what programs write for no value."""
    visible = "".join(character for character in label if not is_invisible(character))
    return bool(label) and visible.strip().lower() in _MISSING


def separate_labels(cells: Sequence[str], *, sep: str = "|") -> list[frozenset[str]]:
    """Return the labels in each cell of a manifest.

    A cell such as `a|b` names all that apply; `-` says that the image was looked at and none does.
    Space around a label does not count.

    Parameters
    ----------
    cells
        Text of the label column, one an image.
    sep
        Text between two labels.

    Raises
    ------
    RunError
        An empty cell or label, or `-` beside others.
    """
    return [_separate(cell, sep) for cell in cells]


def _separate(cell: str, sep: str) -> frozenset[str]:
    labels = frozenset(part.strip() for part in cell.split(sep))
    if labels == {"-"}:
        return frozenset()
    if labels & {"", "-"}:
        raise RunError(
            f"cell '{cell}' is no list of labels; write 'a{sep}b', or '-' where none applies, and "
            "leave out images without a label"
        )
    return labels


def label_matrix(labels: Sequence[Collection[str]], names: Sequence[str]) -> NDArray[np.bool_]:
    """Return which of the names each image has, shape (n, len(names))."""
    rows = [[name in of_image for name in names] for of_image in labels]
    return np.array(rows, np.bool_).reshape(len(labels), len(names))
