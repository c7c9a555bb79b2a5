"""Pixels of more than 8 bits to 8: which ranges are taken, and which are refused."""

from __future__ import annotations

import warnings
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import ImageReadError

Pixels = NDArray[np.uint8]
_SHARE: Final = 16  # what uses less than one part in so many of its range is nearly black
_FEW_LEVELS: Final = 16


def from_range(
    values: NDArray[Any], low: float, high: float, *, is_negative: bool = False
) -> Pixels:
    """Return values with `low` to `high` as 0 to 255, or 255 to 0; `high` may be the lower one."""
    shown = np.clip((values.astype(np.float64) - low) / (high - low) * 255, 0, 255)
    return np.rint(255 - shown if is_negative else shown).astype(np.uint8)


def from_integers(values: NDArray[Any], bits: int = 16) -> Pixels:
    """Return unsigned integers of so many bits as 8 bits: of 16, divided by 257 and rounded.

    Raises
    ------
    ImageReadError
        Values out of the range, or all of them in its lowest sixteenth.
    """
    low, high, most = int(values.min()), int(values.max()), (1 << bits) - 1
    if low < 0 or high > most:
        raise ImageReadError(f"integer pixels from {low} to {high}; expected 0 to {most}")
    if bits > 8 and low < high:
        check_range_is_used(high, most, f"{bits}-bit pixels of at most {high}")
    if bits == 16:
        return few_levels_noted(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    return few_levels_noted(from_range(values, 0, most))


def from_float(values: NDArray[Any]) -> Pixels:
    """Return floats as 8 bits: 0..1 if all of them lie there, else 0..255.

    Raises
    ------
    ImageReadError
        Values out of both ranges, NaN, or values beyond 1 that would be nearly black as 0..255.
    """
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 255):  # also true of NaN
        raise ImageReadError(f"float pixels from {low:g} to {high:g}; expected 0..1 or 0..255")
    if high > 1:
        check_range_is_used(high, 255, f"float pixels from {low:g} to {high:g}")
    scale = 255.0 if high <= 1 else 1.0
    return few_levels_noted(np.rint(values * scale).astype(np.uint8))


def check_range_is_used(
    width: float,
    whole: float,
    what: str,
    way_out: str = "save the picture with its values stretched to the whole range, or as 8 bits",
) -> None:
    """Refuse pixels that use so little of their range that they would be nearly black.

    Parameters
    ----------
    width
        Width of the range that the pixels use.
    whole
        Width of the range that is mapped to 0 to 255.
    what
        Words for the pixels, with their range.
    way_out
        Words for what the user can do.

    Raises
    ------
    ImageReadError
        They use less than a sixteenth.
    """
    if width * _SHARE <= whole:
        raise ImageReadError(f"{what} would be shown nearly black or flat; {way_out}")


def check_not_flattened(stored: NDArray[Any], shown: Pixels) -> None:
    """Refuse a picture whose pixels differ, shape (height, width[, channels]), but not as shown.

    Raises
    ------
    ImageReadError
        All pixels would be shown alike.
    """
    if (shown == shown[0, 0]).all() and (stored != stored[0, 0]).any():
        raise ImageReadError(
            f"its pixels differ ({stored.min():g} to {stored.max():g}), but would be shown alike"
        )


def few_levels_noted(shown: Pixels) -> Pixels:
    """Return pixels; warn of a picture that is nearly black, white or flat."""
    low, high = int(shown.min()), int(shown.max())
    if low < high < low + _FEW_LEVELS:
        warnings.warn(f"shown with grey levels from {low} to {high} only", stacklevel=1)
    return shown
