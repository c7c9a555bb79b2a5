"""The probing protocol: nested, grouped by patient, one score from pooled predictions.

For K folds of patients: the setting for testing fold i is chosen on the other K - 1 folds, each of
them held out in turn; the probe is refitted on all K - 1 with it and predicts fold i. An external
cohort is predicted by a probe fitted on all training patients, with the median of what the folds
chose, on the log scale; it has no part in any choice. Others' protocols differ in how they choose,
never in who is tested by whom. See docs/protocol.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings, check_cohorts
from embedcache.data.folds import FoldTable, fold_gaps
from embedcache.data.predictions import Predictions, Role
from embedcache.errors import RunError
from embedcache.probes.calibration import fit_temperature
from embedcache.probes.families import PROBES
from embedcache.probes.seam import Floats, Path
from embedcache.probes.selection import Rule
from embedcache.protocol.choice import (
    Chosen,
    certificates,
    choose_as_others,
    choose_by_folds,
    choose_nested,
    fitters,
    gap_notes,
)
from embedcache.protocol.protocols import PROTOCOLS, Protocol

# Folds whose settings differ by more than this factor, four steps of the grid of C, get a note.
_UNSTABLE: Final = 101.0


@dataclass(frozen=True, slots=True)
class ProbeSettings:
    """Which probe, and how it is chosen and applied.

    Parameters
    ----------
    probe
        Name of a family; see `PROBES`.
    protocol
        Name of a protocol; see `PROTOCOLS`.
    rule
        Whether a smoother probe wins within a near tie, or within one standard error.
    external
        Who predicts an external cohort: a 'refit' on all training patients, or the mean of the
        'folds' and their probes.
    grid
        Values of the setting to choose from; None: those of the protocol or of the probe.
    seed
        Of what a protocol draws at random.
    """

    probe: str = "logistic"
    protocol: str = "default"
    rule: Rule = "tie"
    external: Literal["refit", "folds"] = "refit"
    grid: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for word, name, known in (
            ("probe", self.probe, PROBES),
            ("protocol", self.protocol, PROTOCOLS),
        ):
            if name not in known:
                raise RunError(f"no {word} '{name}'; it may be {', '.join(known)}")
        if self.probe != "logistic" and self.protocol not in {"default", "fetalclip"}:
            raise RunError(
                f"protocol '{self.protocol}' is about logistic regression; leave out --probe "
                f"{self.probe}"
            )

    @property
    def values(self) -> tuple[float, ...]:
        """What is chosen from, the smoothest probe first."""
        own = self.scheme.grid if self.probe == "logistic" else None
        return self.grid or own or PROBES[self.probe].grid

    @property
    def scheme(self) -> Protocol:
        """The protocol itself."""
        return PROTOCOLS[self.protocol]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What a probe predicted, and what it chose.

    Parameters
    ----------
    predictions
        In-domain first, then one an external cohort.
    choices
        Setting, inner score and temperature by outer fold, setting of the final probe, notes.
    """

    predictions: tuple[Predictions, ...]
    choices: dict[str, Any]


def fit_probe(
    train: LabelledEmbeddings,
    folds: FoldTable,
    external: Sequence[LabelledEmbeddings] = (),
    settings: ProbeSettings = ProbeSettings(),
) -> ProbeResult:
    """Fit, select and predict as the protocol says.

    Parameters
    ----------
    train
        The training cohort; every row labelled.
    folds
        The fold of each of its patients.
    external
        Cohorts to predict; rows whose label the training cohort lacks must be left out before.
    settings
        Which probe, and how.

    Raises
    ------
    LeakageError
        A patient of the training cohort stands in an external one.
    RunError
        A row without a label, or with one that the training cohort lacks.
    """
    classes = tuple(sorted(set(train.label)))
    _check(train, external, classes)
    y = np.searchsorted(classes, train.label).astype(np.int64)
    number = folds.of(train.patient_id)
    # A table may have folds without any of these images.
    numbers, fold = np.unique(number, return_inverse=True)
    if settings.scheme.choice == "nested" and len(numbers) < 3 and len(settings.values) > 1:
        raise RunError(
            f"{len(numbers)} folds leave none to choose {PROBES[settings.probe].setting} on; pass "
            "--folds 3 or more"
        )
    chosen, final = _choose(train, y, len(classes), fold, settings)
    _, fit = fitters(settings.probe, settings.scheme)
    parts = [(np.flatnonzero(fold != place), [one.value]) for place, one in enumerate(chosen)]
    everything = (np.arange(len(y)), [final])
    *paths, last = fit(train.X, y, len(classes), [*parts, everything])

    inside = np.full((len(y), len(classes)), np.nan)
    for place, path in enumerate(paths):
        inside[fold == place] = path.probability(train.X[fold == place])[0]
    temperature = _temperatures(chosen, fold)
    beyond = None if temperature is None else fit_temperature(inside, y)
    gaps = [gap for path in (*paths, last) for gap in certificates(path)]
    by_folds = settings.external == "folds" or settings.scheme.official_split
    outside = paths if by_folds else [last]
    return ProbeResult(
        predictions=(
            _predictions(train, classes, number, inside, "in-domain", temperature),
            *(_external(cohort, classes, outside, beyond) for cohort in external),
        ),
        choices={
            PROBES[settings.probe].setting: [one.value for one in chosen],
            f"final_{PROBES[settings.probe].setting}": final,
            "inner_score": [one.score for one in chosen],
            "temperature": [one.temperature for one in chosen],
            "external_temperature": beyond,
            "gap": gaps,
            "notes": [
                *fold_gaps(folds.n_folds, len(numbers)),
                *_notes([one.value for one in chosen], settings),
                *gap_notes(gaps),
            ],
        },
    )


def _choose(
    train: LabelledEmbeddings,
    y: NDArray[np.int64],
    n_classes: int,
    fold: NDArray[np.int64],
    settings: ProbeSettings,
) -> tuple[list[Chosen], float]:
    """Return what each fold chose, and the setting of the probe of all training patients."""
    fit, _ = fitters(settings.probe, settings.scheme)
    grid, scheme, X = settings.values, settings.scheme, train.X
    numbers = range(int(fold.max()) + 1)
    if scheme.choice != "nested":
        by_name = np.argsort(train.image_id)  # so that no order of the manifest decides a draw
        *chosen, final = (
            choose_as_others(scheme, fit, X, y, n_classes, rows, grid, settings.seed)
            for rows in (*(by_name[fold[by_name] != i] for i in numbers), by_name)
        )
        return chosen, final.value
    if scheme.official_split:
        one = choose_by_folds(fit, X, y, n_classes, fold, grid, settings.rule)
        # Its temperature would be fitted on the very predictions that it is to correct.
        return [replace(one, temperature=None) for _ in numbers], one.value
    chosen = choose_nested(fit, X, y, n_classes, fold, grid, settings.rule)
    return chosen, float(np.exp(np.median(np.log([one.value for one in chosen]))))


def _temperatures(chosen: Sequence[Chosen], fold: NDArray[np.int64]) -> Floats | None:
    fitted = [one.temperature for one in chosen]
    return None if None in fitted else np.array(fitted, np.float64)[fold]


def _external(
    cohort: LabelledEmbeddings,
    classes: tuple[str, ...],
    paths: Sequence[Path],
    temperature: float | None,
) -> Predictions:
    probability = np.mean([path.probability(cohort.X)[0] for path in paths], axis=0)
    nowhere = np.full(len(cohort), -1)
    every = None if temperature is None else np.full(len(cohort), temperature)
    return _predictions(cohort, classes, nowhere, probability, "external", every)


def _notes(chosen: Sequence[float], settings: ProbeSettings) -> Iterator[str]:
    grid, setting = settings.values, PROBES[settings.probe].setting
    if settings.scheme.official_split:
        yield "in-domain scores are of the folds that chose the setting, so they are optimistic"
    n_edge = sum(value in {grid[0], grid[-1]} for value in chosen)
    if n_edge and len(grid) > 1:
        yield f"{setting} chosen at the edge of its grid in {n_edge} folds"
    low, high = min(chosen), max(chosen)
    if settings.probe == "logistic" and high > _UNSTABLE * low:
        yield f"C chosen from {low:.3g} to {high:.3g}, by fold: the choice is unstable"


def _check(
    train: LabelledEmbeddings, external: Sequence[LabelledEmbeddings], classes: tuple[str, ...]
) -> None:
    check_cohorts(train, external)
    for cohort in external:
        strange = sorted(set(cohort.label) - set(classes))
        if strange:
            raise RunError(f"external label '{strange[0]}' is none of {', '.join(classes)}")


def _predictions(
    cohort: LabelledEmbeddings,
    classes: tuple[str, ...],
    fold: NDArray[np.int64],
    probability: NDArray[np.float64],
    role: Role,
    temperature: Floats | None,
) -> Predictions:
    return Predictions(
        role=role,
        classes=classes,
        image_id=cohort.image_id,
        patient_id=cohort.patient_id,
        cohort=cohort.cohort,
        label=cohort.label,
        fold=fold,
        probability=probability,
        temperature=temperature,
    )
