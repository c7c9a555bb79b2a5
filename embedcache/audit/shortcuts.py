"""Shortcuts: what tells the label without a look at the anatomy, and how well embeddings tell it.

The label is predicted from each fact of an image, and from all of them, by naive Bayes with equal
priors on the study's own folds of patients. Whether a fact and the label go together by more than
chance is told by the likelihood ratio G of their table, in which each patient counts once, against
permutations of patients, each of whom takes over the labels of another.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.audit.finding import AuditFinding, Severity
from embedcache.audit.pictures import PictureFacts
from embedcache.files.arrays import Codes, Floats
from embedcache.scoring.confusion import OF_ALL_CLASSES
from embedcache.scoring.grouping import holm

# Words of columns that say how and where an image was taken; others may be the label in disguise.
ACQUISITION: Final = (
    *("center", "centre", "site", "hospital", "country", "source", "origin", "operator"),
    *("sonographer", "device", "machine", "scanner", "vendor", "manufacturer", "probe"),
    *("transducer", "preset", "date", "year"),
)
IMAGE_SIZE: Final = "image size"
COLOUR: Final = "coloured pixels"
MARKS: Final = "burnt-in marks"
_FROM_PICTURES: Final = (IMAGE_SIZE, COLOUR, MARKS)
_NEVER: Final = (
    *("image_id", "path", "sha256", "patient_id"),
    *("label", "source_label", "cohort", "split"),
)
MOST_VALUES: Final = 50
ALPHA: Final = 0.005  # chance of a false alarm, over all facts of an audit
_DRAWS: Final = 400  # permutations a fact: twice what a corrected p of that size needs
_DRAWS_OF_CHANCE: Final = 20  # of them, whose macro F1 is what chance gives
_LEAST_GAIN: Final = 0.1  # of macro F1 over chance
_PURE: Final = 0.9  # share of one class in a value that all but stands for it
_LARGE: Final = 1 / 3  # share of a class in such values
_FEW: Final = 4  # such values at most, with more patients


@dataclass(frozen=True, slots=True)
class Fact:
    """What is known of each image beside its picture.

    Parameters
    ----------
    name
        Name of the manifest column, or of what was measured.
    values
        The different values, sorted.
    codes
        Number of each image's value, shape (n,).
    """

    name: str
    values: tuple[str, ...]
    codes: Codes

    @property
    def is_of_acquisition(self) -> bool:
        """Whether it says how and where an image was taken, whatever the image shows."""
        name = self.name.lower()
        return self.name in _FROM_PICTURES or any(word in name for word in ACQUISITION)


@dataclass(frozen=True, slots=True)
class Told:
    """How well the label is told by facts.

    Parameters
    ----------
    name
        Name of the fact, or 'metadata' for all of acquisition together.
    predicted
        Class told for each image by the other folds, shape (n,).
    score, chance
        Macro F1, and its mean after permutations of patients.
    p
        Share of permutations in which fact and label go together as closely, corrected for the
        number of facts (Holm); of 'metadata' the least of its facts. Above `ALPHA` it is a lower
        bound, since such a fact is not counted any further.
    """

    name: str
    predicted: Codes
    score: float
    chance: float
    p: float

    @property
    def is_shortcut(self) -> bool:
        """Whether that is clearly more than chance."""
        return self.p <= ALPHA and self.score >= self.chance + _LEAST_GAIN


METADATA: Final = "metadata"


def facts_of(columns: Mapping[str, Sequence[str]], label_column: str) -> list[Fact]:
    """Return the columns of few values, but for those that name images, patients or labels.

    Parameters
    ----------
    columns
        Value of each training image as text, by column; '' where it is not known.
    label_column
        Column of the label.
    """
    facts = []
    for name, cells in columns.items():
        values, codes = np.unique(np.array(cells), return_inverse=True)
        is_shared = 1 < len(values) <= min(MOST_VALUES, len(cells) // 3)
        if name not in (*_NEVER, label_column) and is_shared:
            facts.append(Fact(name, tuple(values.tolist()), codes.astype(np.int64)))
    return facts


def picture_columns(facts: Sequence[PictureFacts | None]) -> dict[str, list[str]]:
    """Return what was measured of pictures as columns of few values, '' for one that is not here.

    Parameters
    ----------
    facts
        What was measured of each picture.
    """
    names = [f"{fact.width}x{fact.height}" if fact else "" for fact in facts]
    kinds, counts = np.unique(names, return_counts=True)
    frequent = set(kinds[np.argsort(-counts, kind="stable")[: MOST_VALUES - 1]].tolist())
    return {
        IMAGE_SIZE: [name if name in frequent else "other" for name in names],
        COLOUR: _levels([fact.coloured if fact else None for fact in facts]),
        MARKS: _levels([fact.marks if fact else None for fact in facts]),
    }


def _levels(shares: Sequence[float | None]) -> list[str]:
    """Return 'none', or how a share lies among the others: 'few' or 'many'; '' for none known."""
    positive = [share for share in shares if share]
    middle = np.median(positive) if positive else 0.0
    return [
        "" if share is None else "none" if share == 0 else "few" if share <= middle else "many"
        for share in shares
    ]


def label_from_facts(
    facts: Sequence[Fact], y: Codes, fold: Codes, patient: Codes
) -> dict[str, Told]:
    """Return how well each fact tells the label, and all facts of acquisition together.

    Parameters
    ----------
    facts
        Facts of the training images.
    y, fold, patient
        Class, fold and patient of each image, numbers from 0, shape (n,).
    """
    sets = {fact.name: [fact] for fact in facts}
    together = [fact for fact in facts if fact.is_of_acquisition]
    if together:
        sets[METADATA] = together
    weight = 1 / np.bincount(patient)[patient]  # so that each patient counts once
    links = {fact.name: _link(fact, y, weight) for fact in facts}
    n_better, drawn = dict.fromkeys(links, 0), {name: [0.0] for name in sets}
    n_draws, undecided = _DRAWS * len(facts), list(facts)
    for number, shuffled in enumerate(_shuffled(y, patient, n_draws)):
        for fact in undecided:
            # A permutation may give the very same table, summed in another order.
            n_better[fact.name] += _link(fact, shuffled, weight) >= links[fact.name] - 1e-9
        # Above the bound uncorrected, so above it corrected: no more draws change that.
        undecided = [f for f in undecided if 1 + n_better[f.name] <= ALPHA * (1 + n_draws)]
        if number < _DRAWS_OF_CHANCE:
            for name, members in sets.items():
                drawn[name].append(_macro_f1(shuffled, naive_bayes(members, shuffled, fold)))
        elif not undecided:
            break
    p = dict(zip(links, holm([(1 + n) / (1 + n_draws) for n in n_better.values()]), strict=True))
    p[METADATA] = min((p[fact.name] for fact in together), default=1.0)
    told = {}
    for name, members in sets.items():
        predicted = naive_bayes(members, y, fold)
        told[name] = Told(name, predicted, _macro_f1(y, predicted), fmean(drawn[name][1:]), p[name])
    return told


def _shuffled(y: Codes, patient: Codes, n_draws: int) -> Iterator[Codes]:
    """Yield the labels with those of each patient taken over from another, in their order.

    A patient with more images than the other has each label several times, so that one with many
    images weighs no more in a permutation than in the data.
    """
    by_patient = np.argsort(patient, kind="stable")
    size = np.bincount(patient)
    start = np.cumsum(size) - size
    rank = np.empty_like(y)
    rank[by_patient] = np.arange(len(y)) - start[patient[by_patient]]
    labels, chance = y[by_patient], np.random.default_rng(0)
    for _ in range(n_draws):
        donor = chance.permutation(len(size))[patient]
        yield labels[start[donor] + rank * size[donor] // size[patient]]


def _link(fact: Fact, y: Codes, weight: Floats) -> float:
    """Return how far a fact and the label are from independent: the likelihood ratio G."""
    shape = (len(fact.values), int(y.max()) + 1)
    cells = np.bincount(fact.codes * shape[1] + y, weights=weight, minlength=shape[0] * shape[1])
    table = cells.reshape(shape)
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    ratio = np.divide(table, expected, where=table > 0, out=np.ones(shape))
    return float(2 * (table * np.log(ratio)).sum())


def naive_bayes(facts: Sequence[Fact], y: Codes, fold: Codes) -> Codes:
    """Return the class that the other folds' images of the same values speak for, shape (n,)."""
    n_folds, n_classes = int(fold.max()) + 1, int(y.max()) + 1
    total = np.zeros((len(y), n_classes))
    for fact in facts:
        shape = (n_folds, len(fact.values), n_classes)
        cells = np.ravel_multi_index((fold, fact.codes, y), shape)
        counts = np.bincount(cells, minlength=int(np.prod(shape))).reshape(shape).astype(float)
        trained = counts.sum(axis=0) - counts  # of the other folds
        of_class, of_value = trained.sum(axis=1, keepdims=True), trained.sum(axis=2, keepdims=True)
        # One image of each class, spread as the values are, so that no value rules a class out.
        prior = of_value / np.maximum(of_value.sum(axis=1, keepdims=True), 1)
        known = of_value > 0  # a value that no other fold has speaks for nothing
        chance = np.log((trained + prior) / (of_class + 1), where=known, out=np.zeros(shape))
        total += chance[fold, fact.codes]
    share = np.bincount(y, minlength=n_classes) / len(y)
    return np.asarray((total + 1e-9 * share).argmax(axis=1), np.int64)


def _macro_f1(y: Codes, predicted: Codes) -> float:
    n_classes = int(y.max()) + 1
    columns = n_classes + 1  # the last is of no class, which is never predicted here
    table = np.bincount(y * columns + predicted, minlength=n_classes * columns)
    tables = table.reshape(1, n_classes, columns).astype(np.float64)
    return float(OF_ALL_CLASSES["macro_f1"](tables)[0])


def shortcuts(
    facts: Sequence[Fact],
    told: Mapping[str, Told],
    label_column: str,
    y: Codes,
    classes: Sequence[str],
    patient: Codes,
    reached: float | None,
) -> Iterator[AuditFinding]:
    """Yield the facts that tell the label better than chance allows.

    Parameters
    ----------
    facts, told
        Facts of the training images, and how well they tell the label.
    label_column
        Column of the label.
    y, patient
        Class and patient of each image, numbers from 0, shape (n,).
    classes
        Names of the classes.
    reached
        Macro F1 of the label by the best encoder; None without one.
    """
    beside = "" if reached is None else f", embeddings {reached:.3f}"
    together = [METADATA] if METADATA in told else []
    by_name = {fact.name: fact for fact in facts}
    for name in [*by_name, *together]:
        by_facts, fact = told[name], by_name.get(name)
        if not by_facts.is_shortcut:
            continue
        severity: Severity = "warning" if fact is None or fact.is_of_acquisition else "note"
        what = "all that is known of the acquisition" if fact is None else f"'{name}' alone"
        where = "; ".join(_concentrated(fact, y, classes, patient)) if fact else ""
        yield AuditFinding(
            "shortcut",
            severity,
            f"{what} tells '{label_column}' with macro F1 {by_facts.score:.3f} (chance "
            f"{by_facts.chance:.3f}{beside}){f': {where}' if where else ''}; compare within one "
            "value of it with --where, or test on a cohort that breaks the link",
        )


def _concentrated(fact: Fact, y: Codes, classes: Sequence[str], patient: Codes) -> Iterator[str]:
    """Yield the classes that come mostly from values that hold hardly any other."""
    n_values, n_classes = len(fact.values), len(classes)
    cells = np.bincount(fact.codes * n_classes + y, minlength=n_values * n_classes)
    table: NDArray[np.int64] = cells.reshape(n_values, n_classes)
    pairs = np.unique(np.stack([fact.codes, patient], axis=1), axis=0)
    n_patients = np.bincount(pairs[:, 0], minlength=n_values)
    pure = table >= _PURE * table.sum(axis=1, keepdims=True)
    shares = (table * pure).sum(axis=0) / np.maximum(table.sum(axis=0), 1)
    for number in np.argsort(-shares, kind="stable"):
        values = np.flatnonzero(pure[:, number])
        # A value of one patient has one class for no other reason than that.
        n_behind = int(n_patients[values].sum())
        if shares[number] >= _LARGE and len(values) <= _FEW and n_behind > max(_FEW, len(values)):
            names = ", ".join(fact.values[value] or "(empty)" for value in values)
            yield (
                f"{shares[number]:.0%} of '{classes[number]}' come from {names}, which "
                f"hold{'s' * (len(values) == 1)} hardly any other class"
            )
