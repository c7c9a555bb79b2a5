"""Faults that cost nothing to find: equal images, patients on two sides, spellings, rare classes.

Each finding is told by the images alone, so that every verb that scores can afford it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Final, Literal

from embedcache.audit.finding import AuditFinding, Scene, Severity, Suspect
from embedcache.data.spelling import spelling_twins, spellings_text
from embedcache.data.task_names import TaskName

Pair = tuple[int, int]  # an image and the one that it repeats, by row
Content = Literal["bytes", "pixels"]

# Severity, fault and way out of each kind of equal images.
_FAULTS: Final[dict[tuple[str, Severity], tuple[str, str]]] = {
    ("in-two-cohorts", "leak"): (
        "test images are {of} to a training image",
        "leave them out with --where",
    ),
    ("under-two-patients", "leak"): (
        "training images are {of} to one of another patient",
        "give both one patient_id, or leave them out with --where",
    ),
    ("under-two-patients", "warning"): (
        "test images are {of} to one of another patient, so that they count twice",
        "give both one patient_id",
    ),
    ("under-two-labels", "warning"): (
        "images are {of} to one with another label",
        "correct the one that is wrong",
    ),
}


def cheap_findings(
    scene: Scene, n_folds: int, task: TaskName, *, show_patients: bool = False
) -> list[AuditFinding]:
    """Return what the table of images tells without a look at any picture.

    Parameters
    ----------
    scene
        The images.
    n_folds, task
        Number of folds of the training patients, and kind of label.
    show_patients
        Whether messages name patients; else they name an image of theirs.
    """
    return [
        *identical(scene, scene.key, "bytes"),
        *patients_in_two_cohorts(scene, show_patients=show_patients),
        *patient_spellings(scene, show_patients=show_patients),
        *(rare_classes(scene, n_folds) if task == "classification" else ()),
    ]


def identical(
    scene: Scene, digests: Sequence[str | None], of: Content, before: Collection[AuditFinding] = ()
) -> Iterator[AuditFinding]:
    """Yield what is wrong with images that are equal.

    Parameters
    ----------
    scene
        The images.
    digests
        Digest of each image; None where nobody knows it.
    of
        Content that is digested: 'bytes' or 'pixels'.
    before
        Findings whose images are left out here: equal bytes are equal pixels.
    """
    pairs: dict[tuple[str, Severity], list[Pair]] = {fault: [] for fault in _FAULTS}
    for rows in _groups(digests):
        trained = [row for row in rows if scene.fold[row] >= 0]
        tested = [row for row in rows if scene.fold[row] < 0]
        pairs["in-two-cohorts", "leak"] += [(row, trained[0]) for row in tested if trained]
        pairs["under-two-patients", "leak"] += _pairs(trained, scene.patient_id)
        pairs["under-two-patients", "warning"] += _pairs(tested, scene.patient_id)
        pairs["under-two-labels", "warning"] += _pairs(rows, scene.label)
    reported = {(f.kind.partition("-")[2], f.severity): set(f.images) for f in before}
    for (kind, severity), (fault, way_out) in _FAULTS.items():
        images = reported.get((kind, severity), ())
        left = [pair for pair in pairs[kind, severity] if scene.image_id[pair[0]] not in images]
        if left:
            first, twin = (scene.image_id[row] for row in left[0])
            what = fault.format(of=f"{of.removesuffix('s')}-identical")
            yield AuditFinding(
                f"{of}-{kind}",
                severity,
                f"{len(left)} {what}, first '{first}' like '{twin}'; {way_out}",
                tuple(Suspect(scene.image_id[row], scene.image_id[other]) for row, other in left),
            )


def patients_in_two_cohorts(scene: Scene, *, show_patients: bool) -> Iterator[AuditFinding]:
    """Yield the patients who train and test, and those who are tested twice."""
    cohorts: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for row, (patient, cohort) in enumerate(zip(scene.patient_id, scene.cohort, strict=True)):
        cohorts[patient].setdefault(cohort, row)
    shared = {patient: places for patient, places in cohorts.items() if len(places) > 1}
    if shared:
        patient, places = next(iter(shared.items()))
        rows = [row for row, name in enumerate(scene.patient_id) if name in shared]
        is_leak = scene.trains(rows)
        shown = _shown(scene, patient, show_patients=show_patients)
        yield AuditFinding(
            "patient-in-two-cohorts",
            "leak" if is_leak else "warning",
            f"{len(shared)} patients stand in two cohorts, first {shown} in "
            f"{_quoted(places)}; make patient_id unique over cohorts, or "
            "leave them out with --where",
            tuple(Suspect(scene.image_id[row]) for row in rows),
        )


def patient_spellings(scene: Scene, *, show_patients: bool) -> Iterator[AuditFinding]:
    """Yield patients whose names differ in spelling only."""
    rows_of: defaultdict[str, list[int]] = defaultdict(list)
    for row, patient in enumerate(scene.patient_id):
        rows_of[patient].append(row)
    by_severity: dict[Severity, list[tuple[str, ...]]] = {"leak": [], "warning": []}
    for group in spelling_twins(rows_of):
        is_leak = scene.trains([row for patient in group for row in rows_of[patient]])
        by_severity["leak" if is_leak else "warning"].append(group)
    for severity, groups in by_severity.items():
        if groups:
            first = spellings_text(groups[0])
            if not show_patients:
                images = _quoted(scene.image_id[rows_of[patient][0]] for patient in groups[0])
                first = f"those of images {images}"
            yield AuditFinding(
                "patient-spelling",
                severity,
                f"{sum(map(len, groups))} names of patients differ in spelling only, first "
                f"{first}; spell each patient one way",
                tuple(
                    Suspect(scene.image_id[row])
                    for group in groups
                    for patient in group
                    for row in rows_of[patient]
                ),
            )


def rare_classes(scene: Scene, n_folds: int) -> Iterator[AuditFinding]:
    """Yield the classes that too few training patients have for every fold to test them."""
    patients: defaultdict[str, set[str]] = defaultdict(set)
    for row in range(scene.n_train):
        patients[scene.label[row]].add(scene.patient_id[row])
    rare = {name: who for name, who in sorted(patients.items()) if len(who) < n_folds}
    if rare:
        name, who = next(iter(rare.items()))
        rows = [row for row in range(scene.n_train) if scene.label[row] in rare]
        yield AuditFinding(
            "rare-class",
            "warning",
            f"{len(rare)} classes have fewer training patients than {n_folds} folds, first "
            f"'{name}' with {len(who)}: some folds test none of it; merge it with --class-map, or "
            "leave it out with --where",
            tuple(Suspect(scene.image_id[row], label=scene.label[row]) for row in rows),
        )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _groups(digests: Sequence[str | None]) -> list[list[int]]:
    """Return the rows of each digest that occurs more than once."""
    rows: defaultdict[str, list[int]] = defaultdict(list)
    for row, digest in enumerate(digests):
        if digest:
            rows[digest].append(row)
    return [group for group in rows.values() if len(group) > 1]


def _pairs(rows: Sequence[int], values: Sequence[str]) -> Iterator[Pair]:
    """Yield each of some rows with the first that has another value; none where all have one."""
    for row in rows:
        other = next((twin for twin in rows if values[twin] != values[row]), None)
        if other is not None:
            yield row, other


def _shown(scene: Scene, patient: str, *, show_patients: bool) -> str:
    if show_patients:
        return spellings_text([patient])
    return f"that of image '{scene.image_id[scene.patient_id.index(patient)]}'"
