"""What an audit takes from a decoded picture: digest, perceptual hash, size, burnt-in marks."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

_ROWS, _COLUMNS = 8, 9  # cells of the hash: 8 rows of 8 differences
_FLAT: Final = 1.0  # grey levels; less is what compression leaves of a black border
_COLOURED: Final = 32  # difference of channels in grey levels
_BRIGHT, _DARK = 240, 60  # grey levels of text and calipers, and of what they lie on
_STROKE: Final = 3  # most pixels from a bright one to a dark one: speckle has softer edges
_BORDER: Final = 0.1  # share of height and width on each side


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """What is known of one decoded picture.

    Parameters
    ----------
    pixels
        SHA-256 of size, channels and values.
    hash
        Difference hash of 64 bits, as 16 hexadecimal digits.
    width, height
        Size in pixels.
    coloured
        Share of pixels whose channels differ clearly, from 0 to 1.
    marks
        Share of bright strokes in the outer tenth, from 0 to 1: burnt-in text lies there.
    """

    pixels: str
    hash: str
    width: int
    height: int
    coloured: float
    marks: float


def picture_facts(pixels: NDArray[np.uint8]) -> PictureFacts:
    """Return the facts of a picture, grey of shape (height, width) or RGB of (height, width, 3)."""
    content = hashlib.sha256(str(pixels.shape).encode())
    content.update(np.ascontiguousarray(pixels).data)
    channels = pixels.reshape(*pixels.shape[:2], -1)
    spread = np.ptp(channels, axis=2) if channels.shape[2] > 1 else np.zeros(1, np.uint8)
    grey = channels.mean(axis=2, dtype=np.float32)
    return PictureFacts(
        pixels=content.hexdigest(),
        hash=f"{difference_hash(grey):016x}",
        width=grey.shape[1],
        height=grey.shape[0],
        coloured=round(float((spread > _COLOURED).mean()), 4),
        marks=round(_strokes_in_border(grey), 4),
    )


def _strokes_in_border(grey: NDArray[np.float32]) -> float:
    """Return the share of pixels of the outer tenth that are bright and lie beside dark ones."""
    is_dark = np.pad(grey <= _DARK, ((0, 0), (_STROKE, _STROKE)))
    beside_dark = np.zeros(grey.shape, bool)
    for shift in range(2 * _STROKE + 1):
        beside_dark |= is_dark[:, shift : shift + grey.shape[1]]
    is_stroke = (grey >= _BRIGHT) & beside_dark
    top, left = (max(1, round(_BORDER * length)) for length in grey.shape)
    is_border = np.ones(grey.shape, bool)
    is_border[top:-top, left:-left] = False
    return float(is_stroke[is_border].mean())


def difference_hash(grey: NDArray[np.float32]) -> int:
    """Return whether each of 8 x 9 cells is darker than the one to its right, 64 bits.

    Brightness and contrast do not move it, compression and small crops hardly do.
    """
    cells = _cell_means(_cell_means(grey, _ROWS).T, _COLUMNS).T
    darker = cells[:, 1:] - cells[:, :-1] > _FLAT
    return int.from_bytes(np.packbits(darker).tobytes(), "big")


def _cell_means(values: NDArray[np.float32], n_cells: int) -> NDArray[np.float32]:
    """Return the means of `n_cells` parts of the rows, shape (n_cells, columns)."""
    length = len(values)
    if length < n_cells:
        return np.asarray(values[np.arange(n_cells) * length // n_cells], np.float32)
    edges = np.arange(n_cells + 1) * length // n_cells
    sums = np.add.reduceat(values, edges[:-1], axis=0)
    return np.asarray(sums / np.diff(edges)[:, None], np.float32)


def hash_distance(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Return how many of 64 bits differ between hashes, element by element, shape (n,)."""
    differing = np.ascontiguousarray(first ^ second)[:, None].view(np.uint8)
    return np.asarray(np.unpackbits(differing, axis=1).sum(axis=1), np.int64)
