"""Grey values of a DICOM frame as a viewer shows them, PS3.3 C.11.

Stored values go through the Modality LUT or rescale, then through the first window, or else the VOI
LUT; then what the values can be, not what they are, becomes 0 to 255.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.dicom_tables import Table, lut
from embedcache.data.pixel_ranges import (
    Pixels,
    check_range_is_used,
    few_levels_noted,
    from_float,
    from_range,
)
from embedcache.errors import ImageReadError

_FACTS: Final = (
    *("PhotometricInterpretation", "BitsStored", "PixelRepresentation", "PixelPaddingValue"),
    *("PixelPaddingRangeLimit", "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence", "PixelPresentation"),
    *("PresentationLUTShape", "PresentationLUTSequence"),
)
_RESCALE: Final = ("RescaleSlope", "RescaleIntercept")
_WINDOW: Final = ("WindowCenter", "WindowWidth")
_FUNCTIONS: Final = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


def display_facts(header: Any, index: int) -> Any:
    """Return what decides how a frame is shown: stated for it, else for all frames, else the file.

    What is present but empty is left out, and so is half a rescale or window. Enhanced files state
    it for each frame (PS3.3 C.7.6.16).

    Raises
    ------
    ImageReadError
        It has no meaning, or is not supported.
    """
    from pydicom.dataset import Dataset

    groups = [
        *(header.get("SharedFunctionalGroupsSequence") or [])[:1],
        *(header.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1],
    ]
    modules = [header]
    for group in groups:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            modules += list(group.get(name) or [])[:1]
    facts = Dataset()
    for module in modules:
        for name in _FACTS:
            if name in module and not module[name].is_empty:
                facts.add(module[name])
    _check_presentation(facts)
    _check_rescale(facts)
    _choose_window(facts)
    return facts


def _check_presentation(facts: Any) -> None:
    if "PresentationLUTSequence" in facts or facts.get("PixelPresentation") in {"COLOR", "MIXED"}:
        raise ImageReadError("a Presentation LUT or supplemental palette; neither is supported")
    kind, shape = facts.PhotometricInterpretation, facts.get("PresentationLUTShape")
    if (kind, shape) == ("MONOCHROME2", "INVERSE"):
        raise ImageReadError(f"{kind} and Presentation LUT Shape {shape} contradict each other")


def _check_rescale(facts: Any) -> None:
    if not all(name in facts for name in _RESCALE):
        for name in _RESCALE:
            facts.pop(name, None)
    for name in _RESCALE:
        values = _numbers(facts, name)
        if not all(value is not None and math.isfinite(value) for value in values):
            raise ImageReadError(f"its {name} is no finite number; correct it")
        if values[1:] or (name == "RescaleSlope" and values == [0]):
            raise ImageReadError(
                f"its {name} is {facts[name].value}, which shows nothing; correct it"
            )


def _choose_window(facts: Any) -> None:
    """Keep the first window that is complete."""
    windows = [
        (center, width)
        for center, width in zip(*(_numbers(facts, name) for name in _WINDOW), strict=False)
        if center is not None and width is not None
    ]
    for name in _WINDOW:
        facts.pop(name, None)
    if not windows:
        return
    facts.WindowCenter, facts.WindowWidth = center, width = windows[0]
    function = str(facts.get("VOILUTFunction", "LINEAR")).upper()
    if function not in _FUNCTIONS:
        raise ImageReadError(f"VOI LUT function {function}; expected {', '.join(_FUNCTIONS)}")
    is_wide = width >= 1 if function == "LINEAR" else width > 0
    if not (is_wide and math.isfinite(width) and math.isfinite(center)):
        raise ImageReadError(
            f"its window has the width {width:g} and the centre {center:g}, which shows nothing; "
            "correct or remove it"
        )


def _numbers(facts: Any, name: str) -> list[float | None]:
    """Return the values of an element, None for an empty one."""
    if name not in facts:
        return []
    value = facts[name].value
    values = [value] if facts[name].VM == 1 else value
    return [None if number in {None, ""} else number for number in values]


def stored_range(header: Any) -> NDArray[np.int64]:
    """Return the lowest and the highest value that the stored bits can hold."""
    bits = int(header.BitsStored)
    first = -(1 << (bits - 1)) if header.PixelRepresentation else 0
    return np.array([first, first + (1 << bits) - 1])


def float_pixels(facts: Any, stored: NDArray[Any]) -> Pixels:
    """Return float pixels as those of other files are shown; see `from_float`."""
    has_rescale = [_numbers(facts, name) for name in _RESCALE] not in ([[], []], [[1], [0]])
    tables = ("WindowWidth", "VOILUTSequence", "ModalityLUTSequence")
    if has_rescale or any(name in facts for name in tables):
        raise ImageReadError("float pixels with a rescale, window or table; none is supported")
    shown = from_float(stored)
    return 255 - shown if facts.PhotometricInterpretation == "MONOCHROME1" else shown


def grey_pixels(facts: Any, stored: NDArray[Any], *, is_little_endian: bool) -> Pixels:
    """Return grey values as they are shown.

    Parameters
    ----------
    facts
        What decides how they are shown, from `display_facts`.
    stored
        Stored values, shape (height, width).
    is_little_endian
        Whether the words of the file's tables are.

    Raises
    ------
    ImageReadError
        They would be shown nearly black or flat, or a table is damaged.
    """
    from pydicom.pixels import apply_rescale, apply_windowing

    tables: dict[str, Table] = {
        name: lut(facts[name].value[0], name, is_little_endian=is_little_endian)
        for name in ("ModalityLUTSequence", "VOILUTSequence")
        if name in facts
    }
    modality, voi = tables.get("ModalityLUTSequence"), tables.get("VOILUTSequence")
    values = apply_rescale(stored, facts) if modality is None else modality(stored)
    ends = apply_rescale(stored_range(facts), facts) if modality is None else modality.entries
    is_negative = facts.PhotometricInterpretation == "MONOCHROME1"
    if "WindowWidth" in facts:
        # The output of a window has the range of its input, turned round by a negative slope.
        low, high = ends if modality is None else (0, (1 << modality.bits) - 1)
        with np.errstate(over="ignore"):  # of a sigmoid, where it reaches 0
            values = apply_windowing(values, facts)
        shown = from_range(values, float(low), float(high), is_negative=is_negative)
        return few_levels_noted(shown)
    if voi is not None:
        values, low, high = voi(values), 0.0, (1 << voi.bits) - 1.0
        used = np.array([low, voi.entries.max()])
    else:
        low, high = float(ends.min()), float(ends.max())
        used = values[~_is_padding(facts, stored)]
    is_deep = facts.BitsStored > 8 or bool(tables)
    if is_deep and used.size and used.min() < used.max():
        what = f"values from {used.min():g} to {used.max():g} of {low:g} to {high:g}"
        width = float(used.max() - used.min())
        check_range_is_used(width, high - low, what, "write a window into the file")
    shown = from_range(values, low, high, is_negative=is_negative)
    return few_levels_noted(shown) if is_deep else shown


def _is_padding(facts: Any, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Tell which pixels only fill the picture up (PS3.3 C.7.5.1.1.2)."""
    if "PixelPaddingValue" not in facts:
        return np.zeros(stored.shape, np.bool_)
    ends = facts.PixelPaddingValue, facts.get("PixelPaddingRangeLimit", facts.PixelPaddingValue)
    return np.asarray((stored >= min(ends)) & (stored <= max(ends)))
