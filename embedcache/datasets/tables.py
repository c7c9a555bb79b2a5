"""Published metadata tables, read with their spaces stripped and their lines numbered."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from embedcache.data.manifest import decode_text
from embedcache.errors import ManifestError
from embedcache.files.regular import read_regular


def read_table(
    file: Path, columns: Sequence[str], delimiter: str
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and cells of each row; headers and cells are stripped.

    Parameters
    ----------
    file
        Table with a header line, UTF-8.
    columns
        Names of the columns that it must have.
    delimiter
        Character between two cells.

    Raises
    ------
    ManifestError
        The file is missing, is not UTF-8, lacks a column, or a row has another number of cells.
    """
    try:
        data = read_regular(file)
    except OSError as error:
        raise ManifestError(
            f"{file}: no table: {error.strerror}; pass the unpacked download as --root, or the "
            "table itself as --table"
        ) from None
    rows = csv.reader(io.StringIO(decode_text(data, file), newline=""), delimiter=delimiter)
    header = [name.strip() for name in next(rows, [])]
    missing = [name for name in columns if name not in header]
    if missing:
        raise ManifestError(
            f"{file}:1: no column '{missing[0]}'; found {', '.join(header)}; expected the "
            f"published table, separated by '{delimiter}'"
        )
    for row in rows:
        if len(row) != len(header):
            raise ManifestError(
                f"{file}:{rows.line_num}: {len(row)} cells, the header has {len(header)}"
            )
        yield rows.line_num, dict(zip(header, map(str.strip, row), strict=True))


def images_folder(root: Path) -> str:
    """Return the prefix of the images' paths: copies of a download spell the folder differently."""
    return next((f"{name}/" for name in ("Images", "images") if (root / name).is_dir()), "Images/")
