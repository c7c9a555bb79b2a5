"""Several labels in one cell of a manifest: `a|b`, or `-` for none."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import RunError


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
