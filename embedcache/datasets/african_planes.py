"""The African planes: 450 images, five countries, 127 patients (Zenodo 7540448, CC BY 4.0).

Sendra-Balcells et al. 2023, Scientific Reports 13:2728. Patient numbers start anew in each country.
The column `Train` is read both ways by public loaders, so it is kept but means nothing here: all
images are the external test.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from embedcache.datasets.tables import read_table
from embedcache.errors import ManifestError

TABLE: Final = "African_planes_database.csv"
COHORT: Final = "africa"
_COLUMNS: Final = ("Patient_num", "Plane", "Train", "Center", "Filename")
COUNTRIES: Final = {
    "Algeria": "DZA",
    "Egypt": "EGY",
    "Ghana": "GHA",
    "Malawi": "MWI",
    "Uganda": "UGA",
}
_PLANES: Final = {"Fetal abdomen", "Fetal brain", "Fetal femur", "Fetal thorax"}
_NAME: Final = re.compile(r"patient(\d{3})_([A-Z]{3})_plane\d")


def african_planes_rows(
    root: Path, *, table: Path | None = None, cohort: str = COHORT
) -> list[dict[str, str]]:
    """Return the manifest's rows, paths relative to `root`.

    Parameters
    ----------
    root
        Folder of the unpacked download, with one folder a country.
    table
        Metadata table of the download; None where it lies in `root`.
    cohort
        Name of the cohort.

    Raises
    ------
    ManifestError
        The table is missing or is not the published one; names file, line and value.
    """
    file = table or root / TABLE
    return [_row(file, line, row, cohort) for line, row in read_table(file, _COLUMNS, ",")]


def _row(file: Path, line: int, row: dict[str, str], cohort: str) -> dict[str, str]:
    center, name, number = row["Center"], row["Filename"], row["Patient_num"]
    parsed = _NAME.fullmatch(name)
    if center not in COUNTRIES:
        raise ManifestError(
            f"{file}:{line}: Center '{center}', expected one of {', '.join(COUNTRIES)}"
        )
    agrees = parsed is not None and number.isdigit() and int(parsed[1]) == int(number)
    if parsed is None or not agrees or parsed[2] != COUNTRIES[center]:
        raise ManifestError(
            f"{file}:{line}: Filename '{name}', Center '{center}' and Patient_num '{number}' do "
            "not agree"
        )
    if row["Plane"] not in _PLANES:
        raise ManifestError(
            f"{file}:{line}: Plane '{row['Plane']}', expected one of {', '.join(sorted(_PLANES))}"
        )
    return {
        "image_id": name,
        "path": f"{center}/{name}.png",
        "patient_id": f"{COUNTRIES[center]}-{int(number):03d}",
        "label": row["Plane"],
        "cohort": cohort,
        "center": center,
        "source_train": row["Train"],
    }
