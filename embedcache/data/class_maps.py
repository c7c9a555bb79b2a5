"""Which classes are told apart: maps from a manifest's labels to a probe's classes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from embedcache.data.manifest import decode_text
from embedcache.errors import ManifestError
from embedcache.files.regular import read_regular

_PLANES: Final = (
    "Fetal abdomen",
    "Fetal brain",
    "Fetal femur",
    "Fetal thorax",
    "Maternal cervix",
    "Other",
)
_LEFT_OUT: Final[Mapping[int, tuple[str, ...]]] = {
    6: (),
    5: ("Other",),
    4: ("Other", "Maternal cervix"),  # all that the African cohort has
    3: ("Other", "Maternal cervix", "Fetal thorax"),  # common to each of its countries
}
BUILTIN: Final[Mapping[str, Mapping[str, str]]] = {
    f"fetal-planes-{n}": {name: name for name in _PLANES if name not in left_out}
    for n, left_out in _LEFT_OUT.items()
}


def read_class_map(name: str) -> Mapping[str, str]:
    """Return a map from label to class; labels that it lacks are to be left out.

    Parameters
    ----------
    name
        A built-in map, or a CSV file with the columns 'label' and 'class'.

    Raises
    ------
    ManifestError
        Neither, or the file is not UTF-8, has other columns, or maps a label twice.
    """
    if name in BUILTIN:
        return BUILTIN[name]
    try:
        data = read_regular(name)
    except OSError as error:
        raise ManifestError(
            f"{name}: no class map: {error.strerror}; expected a CSV file (label, class) or one of "
            f"{', '.join(BUILTIN)}"
        ) from None
    mapping: dict[str, str] = {}
    rows = csv.DictReader(io.StringIO(decode_text(data, Path(name)), newline=""))
    try:
        for row in rows:
            label, target = row["label"].strip(), row["class"].strip()
            if mapping.setdefault(label, target) != target:
                raise ManifestError(
                    f"{name}:{rows.line_num}: label '{label}' maps to '{mapping[label]}' and "
                    f"to '{target}'; expected one class"
                )
    except (KeyError, AttributeError):
        raise ManifestError(f"{name}: expected CSV with the columns 'label' and 'class'") from None
    return {label: target for label, target in mapping.items() if target}
