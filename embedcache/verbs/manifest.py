"""`manifest`: write a manifest from a data set, and check one against the images."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa

from embedcache.data.image_files import ImageFile, hash_images
from embedcache.data.images import decode_image, split_frame
from embedcache.data.manifest import Manifest, read_manifest, write_manifest
from embedcache.data.pseudonyms import Pseudonyms, read_key
from embedcache.data.tabular import Tabular
from embedcache.errors import ImageReadError, ManifestError
from embedcache.files.cores import usable_cores
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
    base = (data_root or file.parent).resolve()
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


@dataclass(frozen=True, slots=True)
class Trouble:
    """One kind of thing that is wrong with a manifest or its images.

    Parameters
    ----------
    kind
        'missing', 'unreadable', 'changed', 'patient-in-two-cohorts', 'bytes-under-two-patients',
        'bytes-under-two-labels' or 'label-spelling'.
    message
        One line, with the first offender.
    images
        All the images concerned.
    """

    kind: str
    message: str
    images: tuple[str, ...]


NOT_READABLE: Final = ("missing", "unreadable", "changed")
LEAKS: Final = ("patient-in-two-cohorts", "bytes-under-two-patients")


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
    cohorts
        Images by cohort and label.
    troubles
        What is wrong, one entry a kind.
    """

    manifest: Path
    n_images: int
    n_patients: int
    cohorts: dict[str, dict[str, int]]
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
    with ThreadPoolExecutor(max(2, usable_cores())) as pool:
        # Threads do: Pillow decodes without the interpreter lock.
        reasons = list(pool.map(_reason, files))
    columns = manifest.columns
    cohorts: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for cohort, label in zip(columns["cohort"], columns["label"], strict=True):
        cohorts[cohort][label] += 1
    return CheckReport(
        manifest=session.workspace.manifest,
        n_images=len(manifest),
        n_patients=len(set(columns["patient_id"])),
        cohorts={name: dict(sorted(labels.items())) for name, labels in sorted(cohorts.items())},
        troubles=tuple(_troubles(manifest, files, file_digests, reasons)),
    )


def _reason(file: ImageFile) -> str:
    try:
        decode_image(Path(file.path).read_bytes(), file.frame)
    except FileNotFoundError:
        return "missing"
    except ImageReadError as error:
        return str(error)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _troubles(
    manifest: Manifest,
    files: Sequence[ImageFile],
    digests: Sequence[str],
    reasons: Sequence[str],
) -> Iterable[Trouble]:
    name = manifest.column("image_id")
    keys = [
        file.key_of(digest) if digest else "" for file, digest in zip(files, digests, strict=True)
    ]
    missing = [i for i, reason in enumerate(reasons) if reason == "missing"]
    broken = [i for i, reason in enumerate(reasons) if reason not in {"", "missing"}]
    changed = [
        i for i, file in enumerate(files) if digests[i] and file.expected not in {"", digests[i]}
    ]
    if missing:
        yield _trouble("missing", "images are not on disk", missing, name)
    if broken:
        why = f"images cannot be read ({reasons[broken[0]]})"
        yield _trouble("unreadable", why, broken, name)
    if changed:
        yield _trouble("changed", "images differ from the manifest's sha256", changed, name)
    patient, label, cohort = (manifest.column(n) for n in ("patient_id", "label", "cohort"))
    in_two = _several(patient, cohort)
    if in_two:
        what = f"images of patients in two cohorts ('{patient[in_two[0]]}' is one)"
        yield _trouble("patient-in-two-cohorts", what, in_two, name)
    for kind, values in (("patients", patient), ("labels", label)):
        double = _several(keys, values)
        if double:
            what = f"images are byte-identical to one under another of the {kind}"
            yield _trouble(f"bytes-under-two-{kind}", what, double, name)
    near = _misspelt(set(label))
    if near:
        numbers = [i for i, text in enumerate(label) if text in near]
        what = f"images have labels that differ in spelling only ({', '.join(sorted(near))})"
        yield _trouble("label-spelling", what, numbers, name)


def _trouble(kind: str, what: str, numbers: Sequence[int], name: Sequence[str]) -> Trouble:
    images = tuple(name[number] for number in numbers)
    return Trouble(kind, f"{len(images)} {what}, first '{images[0]}'", images)


def _several(groups: Sequence[str], values: Sequence[str]) -> list[int]:
    """Return the rows of groups that have more than one value; an empty group is none."""
    by_group: defaultdict[str, set[str]] = defaultdict(set)
    for group, value in zip(groups, values, strict=True):
        by_group[group].add(value)
    return [i for i, group in enumerate(groups) if group and len(by_group[group]) > 1]


def _misspelt(labels: set[str]) -> set[str]:
    """Return labels that are equal but for case, spaces, hyphens and underscores."""
    plain: defaultdict[str, set[str]] = defaultdict(set)
    for label in labels:
        plain["".join(c for c in label.lower() if c.isalnum())].add(label)
    return {label for spelt in plain.values() if len(spelt) > 1 for label in spelt}
