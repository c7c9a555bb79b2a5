"""`manifest`: write a manifest from a data set, and check one against the images."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from embedcache.data.image_files import ImageFile, hash_images
from embedcache.data.images import decode_image, split_frame
from embedcache.data.manifest import Manifest, read_manifest, write_manifest
from embedcache.data.outputs import check_place
from embedcache.data.pseudonyms import Pseudonyms, read_key
from embedcache.data.tabular import Tabular
from embedcache.data.troubles import (
    LEAKS,
    NOT_READABLE,
    ClassCount,
    Trouble,
    count_classes,
    find_troubles,
)
from embedcache.errors import ImageReadError, ManifestError
from embedcache.files.cores import usable_cores
from embedcache.files.regular import read_regular
from embedcache.files.threads import ReadingThreads
from embedcache.verbs.session import Session


@dataclass(frozen=True, slots=True)
class Written:
    """A manifest that was written.

    Parameters
    ----------
    manifest
        The manifest as it was read back.
    missing
        Ids of images that are not on this disk.
    """

    manifest: Manifest
    missing: tuple[str, ...]

    @property
    def classes(self) -> tuple[ClassCount, ...]:
        """Images and patients by cohort and label."""
        return count_classes(self.manifest)


def write_rows(
    rows: Sequence[dict[str, str]],
    root: Path,
    file: Path,
    *,
    data_root: Path | None = None,
    append: bool = False,
    overwrite: bool = False,
    allow_missing: bool = False,
    pseudonymise: Path | None = None,
) -> Written:
    """Write a data set's rows as a manifest.

    Parameters
    ----------
    rows
        Cells by column, one row an image, paths relative to `root`.
    root
        Folder of the data set.
    file
        Manifest to write.
    data_root
        Folder that paths are written relative to; None for the manifest's.
    append
        Whether the rows that the manifest has already are kept.
    overwrite
        Whether a manifest that holds other rows is replaced.
    allow_missing
        Whether the manifest is written although images are missing on disk.
    pseudonymise
        File of the key under which patients and images get pseudonyms; None for their own ids.

    Raises
    ------
    ManifestError
        `root` is outside the data root, an id is there already, images are missing, or another
        manifest is in the way.
    """
    check_place(file)
    base = Path(os.path.realpath(data_root or file.parent))
    old_rows = _rows_of(file) if append and file.exists() else []
    if pseudonymise is not None:
        rows = _pseudonymised(rows, old_rows, read_key(pseudonymise))
    new_rows = _relative_to(base, root, rows)
    missing = _missing(base, new_rows, is_allowed=allow_missing)
    names = dict.fromkeys(name for row in (*old_rows, *new_rows) for name in row)
    rows = [{name: row.get(name, "") for name in names} for row in (*old_rows, *new_rows)]
    return Written(write_manifest(file, rows, overwrite=append or overwrite), missing)


def _pseudonymised(
    rows: Sequence[dict[str, str]], old_rows: Sequence[dict[str, str]], pseudonyms: Pseudonyms
) -> list[dict[str, str]]:
    renamed = pseudonyms.rows(rows)
    patients = {row["patient_id"] for row in renamed}
    n_plain = len(patients & {row["patient_id"] for row in pseudonyms.rows(old_rows)})
    if n_plain:
        raise ManifestError(
            f"the manifest has {n_plain} of these patients by their own ids, and they would be "
            "two each; write it anew with --overwrite, all of it with --pseudonymise"
        )
    return renamed


def _relative_to(base: Path, root: Path, rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    """Return rows with paths relative to `base`, where they were relative to `root`."""
    below = os.path.relpath(root.resolve(), base)
    if below.startswith(".."):
        raise ManifestError(
            f"images below {root} are outside {base}; write the manifest there with -o "
            f"{root / 'data_manifest.csv'}, or pass a folder that holds both as --data-root (to "
            "every later command too)"
        )
    prefix = "" if below == "." else f"{Path(below).as_posix()}/"
    return [{**row, "path": f"{prefix}{row['path']}"} for row in rows]


def _missing(base: Path, rows: Sequence[dict[str, str]], *, is_allowed: bool) -> tuple[str, ...]:
    """Return the ids of images that are not on this disk, or raise where none may be missing."""
    missing = [
        row
        for row in rows
        if not os.path.isfile(f"{base}/{split_frame(row['path'])[0]}")  # noqa: PTH113 - 12,850 of them
    ]
    if missing and not is_allowed:
        raise ManifestError(
            f"{len(missing)} of {len(rows)} images are not on disk, first "
            f"{base}/{missing[0]['path']}; pass --allow-missing to write the manifest all the same"
        )
    return tuple(row["image_id"] for row in missing)


def _rows_of(file: Path) -> list[dict[str, str]]:
    columns = read_manifest(file).columns
    return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]


_TROUBLES: Final = pa.schema(
    [("kind", pa.string()), ("message", pa.string()), ("n_images", pa.int64())]
)


@dataclass(frozen=True, slots=True, repr=False)
class CheckReport(Tabular):
    """What `manifest check` found.

    Parameters
    ----------
    manifest
        The file.
    n_images, n_patients
        What it holds.
    classes
        Images and patients by cohort and label.
    troubles
        What is wrong, one entry a kind.
    """

    manifest: Path
    n_images: int
    n_patients: int
    classes: tuple[ClassCount, ...]
    troubles: tuple[Trouble, ...]

    @property
    def has_leaks(self) -> bool:
        """Whether a patient, or an image, stands on two sides."""
        return any(trouble.kind in LEAKS for trouble in self.troubles)

    @property
    def is_incomplete(self) -> bool:
        """Whether an image is missing, unreadable or changed."""
        return any(trouble.kind in NOT_READABLE for trouble in self.troubles)

    def table(self) -> pa.Table:
        """Return what is wrong, one row a kind."""
        rows = [{**asdict(trouble), "n_images": len(trouble.images)} for trouble in self.troubles]
        return pa.Table.from_pylist(rows, schema=_TROUBLES)


def check(session: Session) -> CheckReport:
    """Check a manifest and every image it names: there, readable, unchanged, and no leak.

    Raises
    ------
    ManifestError
        The manifest itself cannot be read.
    """
    manifest, files = session.manifest, session.image_files
    file_digests = hash_images(files, session.digests, max(2, usable_cores()))
    # To check a folder must not make a store in it.
    if session.workspace.has_store():
        session.digests.save()
    # Threads do: Pillow decodes without the interpreter lock.
    with ReadingThreads(max(2, usable_cores())) as pool:
        outcomes = list(pool.map(_outcome, files))
    reasons, notes = zip(*outcomes, strict=True)
    return CheckReport(
        manifest=session.workspace.manifest,
        n_images=len(manifest),
        n_patients=len(set(manifest.column("patient_id"))),
        classes=count_classes(manifest),
        troubles=tuple(find_troubles(manifest, files, file_digests, reasons, notes)),
    )


def _outcome(file: ImageFile) -> tuple[str, str]:
    """Return why an image cannot be read, and the warnings about it; '' where there is nothing."""
    notes: list[str] = []
    try:
        decode_image(read_regular(file.path), file.frame, notes.append)
    except FileNotFoundError:
        return "missing", ""
    except ImageReadError as error:
        return str(error), ""
    except OSError as error:
        return error.strerror or str(error), ""
    return "", "; ".join(notes)
