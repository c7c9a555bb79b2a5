"""Look-up tables of DICOM files: Modality and VOI LUT, and colour palettes (PS3.3 C.11, C.7.9)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.errors import ImageReadError

_COLOURS: Final = ("Red", "Green", "Blue")


@dataclass(frozen=True, slots=True)
class Table:
    """A look-up table.

    Parameters
    ----------
    entries
        Value for each input, shape (n_entries,).
    first
        Input that the first entry is for; what is lower has that entry too.
    bits
        Number of bits that an entry may have.
    """

    entries: NDArray[np.int64]
    first: int
    bits: int

    def __call__(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return the entry for each value; values outside the table have its ends."""
        places = np.rint(values).astype(np.int64) - self.first
        return np.asarray(self.entries[np.clip(places, 0, len(self.entries) - 1)])


def lut(item: Any, name: str, *, is_little_endian: bool) -> Table:
    """Return the table in an item of a Modality or VOI LUT Sequence.

    Raises
    ------
    ImageReadError
        It is incomplete, or its entries do not fit their bits.
    """
    n_entries, first, bits = _descriptor(item, "LUTDescriptor", name)
    if bits != 8 and not 10 <= bits <= 16:
        raise ImageReadError(f"{name} with {bits} bits an entry; expected 8 or 10 to 16")
    entries = _entries(item, "LUTData", n_entries, bits, name, is_little_endian)
    if entries.max() >= 1 << bits:
        raise ImageReadError(f"{name} has the entry {entries.max()}; expected {bits} bits")
    return Table(entries, first, bits)


def palette(header: Any, *, is_little_endian: bool) -> Table:
    """Return the colour palette of a file, entries of shape (n_entries, 3), 8 bits.

    Raises
    ------
    ImageReadError
        It is missing or incomplete.
    """
    name = "the colour palette"
    n_entries, first, bits = _descriptor(header, "RedPaletteColorLookupTableDescriptor", name)
    if bits not in {8, 16}:
        raise ImageReadError(f"{name} has {bits} bits an entry; expected 8 or 16")
    if not header.get("RedPaletteColorLookupTableData"):
        colours = _segmented(header, n_entries, first, bits)
    else:
        colours = np.stack(
            [
                _entries(
                    header,
                    f"{colour}PaletteColorLookupTableData",
                    n_entries,
                    bits,
                    name,
                    is_little_endian,
                )
                for colour in _COLOURS
            ],
            axis=-1,
        )
    # Palettes of 8 bits are also written as words, whatever the descriptor says.
    return Table(colours if colours.max() <= 255 else colours >> 8, first, 8)


def _segmented(header: Any, n_entries: int, first: int, bits: int) -> NDArray[np.int64]:
    """Return a palette that is stored as segments, PS3.3 C.7.9.2."""
    from pydicom.pixels import apply_color_lut

    if not header.get("SegmentedRedPaletteColorLookupTableData"):
        raise ImageReadError("PALETTE COLOR without a palette; no viewer can colour it")
    if n_entries > 1 << bits:  # pydicom counts the entries in as many bits as they have
        raise ImageReadError(f"a segmented palette of {n_entries} entries of {bits} bits")
    colours = apply_color_lut(np.arange(first, first + n_entries, dtype=np.int64), header)
    return np.asarray(colours, np.int64)[:, :3]


def _descriptor(item: Any, key: str, name: str) -> tuple[int, int, int]:
    values = item.get(key)
    if values is None or len(values) != 3:
        raise ImageReadError(f"{name} has no descriptor of three numbers")
    n_entries, first, bits = map(int, values)
    return n_entries % (1 << 16) or 1 << 16, first, bits  # PS3.3 C.11.1.1: 0 stands for 65536


def _entries(
    item: Any, key: str, n_entries: int, bits: int, name: str, is_little_endian: bool
) -> NDArray[np.int64]:
    data, order = item.get(key), "<" if is_little_endian else ">"
    if data is None or data == b"":
        raise ImageReadError(f"{name} has no entries")
    if not isinstance(data, bytes):  # parsed as numbers already; negative where parsed as signed
        order = "<"
        data = (np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF).astype("<u2").tobytes()
    if bits == 8 and len(data) < 2 * n_entries:
        entries = np.frombuffer(data, np.uint8)
    else:
        entries = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2")
    if len(entries) < n_entries:
        raise ImageReadError(f"{name} has {len(entries)} entries; expected {n_entries}")
    return entries[:n_entries].astype(np.int64)
