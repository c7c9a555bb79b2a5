"""What is wrong, or looks wrong, with the rows of a manifest and the images that they name."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from embedcache.data.image_files import ImageFile
from embedcache.data.labels import looks_missing
from embedcache.data.manifest import REQUIRED, Manifest
from embedcache.data.spelling import spelling_twins, twins_text
from embedcache.visible import has_invisible, is_invisible, visible_text

NOT_READABLE: Final = ("missing", "unreadable", "changed")
LEAKS: Final = ("patient-in-two-cohorts", "bytes-under-two-patients")


@dataclass(frozen=True, slots=True)
class Trouble:
    """One kind of thing that is wrong, or looks wrong, with a manifest or its images.

    Parameters
    ----------
    kind
        'missing', 'unreadable', 'changed', 'patient-in-two-cohorts', 'bytes-under-two-patients',
        'bytes-under-two-labels', 'id-spelling', 'patient-spelling', 'label-spelling',
        'one-patient-a-class', 'label-looks-missing', 'invisible-characters' or 'warning'.
    message
        One line, with the first offender.
    images
        All the images concerned.
    """

    kind: str
    message: str
    images: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ClassCount:
    """How much a cohort has of a class.

    Parameters
    ----------
    cohort, label
        Names of the cohort and of the class; '' for images without a label.
    n_images, n_patients
        Number of images, and of patients with such an image.
    """

    cohort: str
    label: str
    n_images: int
    n_patients: int


def count_classes(manifest: Manifest) -> tuple[ClassCount, ...]:
    """Return the number of images and patients of each cohort and label, sorted."""
    cells = list(zip(*map(manifest.column, ("cohort", "label", "patient_id")), strict=True))
    images = Counter((cohort, label) for cohort, label, _ in cells)
    patients = Counter((cohort, label) for cohort, label, _ in set(cells))
    return tuple(ClassCount(*pair, n, patients[pair]) for pair, n in sorted(images.items()))


def find_troubles(
    manifest: Manifest,
    files: Sequence[ImageFile],
    digests: Sequence[str],
    reasons: Sequence[str],
    notes: Sequence[str],
) -> Iterator[Trouble]:
    """Yield each kind of trouble of a manifest.

    Parameters
    ----------
    manifest
        The manifest.
    files
        Its images as files.
    digests
        SHA-256 of each file, '' where it cannot be read.
    reasons
        Why each image cannot be read: 'missing', another reason, or '' where it can.
    notes
        What the decoders warn of in each image, '' for nothing.
    """
    yield from _file_troubles(manifest, files, digests, reasons)
    keys = [
        file.key_of(digest) if digest else "" for file, digest in zip(files, digests, strict=True)
    ]
    name, patient, label, cohort = map(
        manifest.column, ("image_id", "patient_id", "label", "cohort")
    )
    in_two = _several(patient, cohort)
    if in_two:
        n_patients = len({patient[number] for number in in_two})
        what = f"images of {n_patients} patients who stand in two cohorts"
        yield _trouble("patient-in-two-cohorts", what, in_two, name)
    for kind, values in (("patients", patient), ("labels", label)):
        double = _several(keys, values)
        if double:
            what = f"images are byte-identical to one under another of the {kind}"
            yield _trouble(f"bytes-under-two-{kind}", what, double, name)
    yield from _name_troubles(manifest)
    noted = [i for i, note in enumerate(notes) if note]
    if noted:
        yield _trouble(
            "warning", f"images are read with a warning ({notes[noted[0]]})", noted, name
        )


def _file_troubles(
    manifest: Manifest,
    files: Sequence[ImageFile],
    digests: Sequence[str],
    reasons: Sequence[str],
) -> Iterator[Trouble]:
    name = manifest.column("image_id")
    missing = [i for i, reason in enumerate(reasons) if reason == "missing"]
    broken = [i for i, reason in enumerate(reasons) if reason not in {"", "missing"}]
    changed = [
        i for i, file in enumerate(files) if digests[i] and file.expected not in {"", digests[i]}
    ]
    if missing:
        other = _other_form(Path(files[missing[0]].path))
        form = f"in another Unicode form, '{ascii(other)[1:-1]}'"
        hint = f" (the first is there {form})" if other else ""
        yield _trouble("missing", f"images are not on disk{hint}", missing, name)
    if broken:
        why = f"images cannot be read ({reasons[broken[0]]})"
        yield _trouble("unreadable", why, broken, name)
    if changed:
        yield _trouble("changed", "images differ from the manifest's sha256", changed, name)


def _name_troubles(manifest: Manifest) -> Iterator[Trouble]:
    name, patient, label = map(manifest.column, ("image_id", "patient_id", "label"))
    # Other spellings of an image are other images: `P1_1`, `P1_01`.
    alike = [group for group in spelling_twins(name) if len(set(map(_look, group))) < len(group)]
    yield from _spelling_troubles(name, "id", name, alike)
    yield from _spelling_troubles(name, "patient", patient, spelling_twins(patient))
    yield from _spelling_troubles(name, "label", label, spelling_twins(label))
    if _has_one_patient_a_class(label, patient):
        what = "images in classes of one patient each; was the patient read from the class?"
        yield _trouble("one-patient-a-class", what, range(len(name)), name)
    empty = [i for i, text in enumerate(label) if looks_missing(text)]
    if empty:
        what = (
            f"images have a label that looks like a missing value ('{label[empty[0]]}'), and are a "
            "class; leave the cell empty if they have none"
        )
        yield _trouble("label-looks-missing", what, empty, name)
    rows = list(enumerate(zip(*map(manifest.column, REQUIRED), strict=True)))
    hidden = [(i, cell) for i, row in rows for cell in row if has_invisible(cell)]
    if hidden:
        what = f"images have characters in a cell that cannot be seen ('{hidden[0][1]}' is one)"
        yield _trouble("invisible-characters", what, sorted({i for i, _ in hidden}), name)


def _other_form(path: Path) -> str:
    """Return the file beside a path that has its name in another Unicode form, '' for none."""
    form = unicodedata.normalize("NFC", path.name)
    files = path.parent.iterdir() if not form.isascii() and path.parent.is_dir() else ()
    return next((f.name for f in files if unicodedata.normalize("NFC", f.name) == form), "")


def _look(name: str) -> str:
    """Return a name as a reader sees it."""
    visible = "".join(character for character in name if not is_invisible(character))
    return unicodedata.normalize("NFC", visible)


def _spelling_troubles(
    name: Sequence[str], what: str, values: Sequence[str], twins: Sequence[Sequence[str]]
) -> Iterator[Trouble]:
    if twins:
        several = {value for group in twins for value in group}
        numbers = [i for i, value in enumerate(values) if value in several]
        message = f"images have {what}s that differ in spelling only ({twins_text(twins)})"
        yield _trouble(f"{what}-spelling", message, numbers, name)


def _trouble(kind: str, what: str, numbers: Sequence[int], name: Sequence[str]) -> Trouble:
    images = tuple(name[number] for number in numbers)
    return Trouble(kind, visible_text(f"{len(images)} {what}, first '{images[0]}'"), images)


def _several(groups: Sequence[str], values: Sequence[str]) -> list[int]:
    """Return the rows of groups that have more than one value; an empty group is none."""
    by_group: defaultdict[str, set[str]] = defaultdict(set)
    for group, value in zip(groups, values, strict=True):
        by_group[group].add(value)
    return [i for i, group in enumerate(groups) if group and len(by_group[group]) > 1]


def _has_one_patient_a_class(labels: Sequence[str], patients: Iterable[str]) -> bool:
    pairs = set(zip(labels, patients, strict=True))
    classes, people = {label for label, _ in pairs}, {patient for _, patient in pairs}
    return 1 < len(classes) == len(people) == len(pairs) < len(labels)
