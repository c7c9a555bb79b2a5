"""What a probe has to beat: rows that hold no picture, and labels that mean nothing.

Each control goes through the very protocol that the encoders go through. Ojala and Garriga 2010,
Journal of Machine Learning Research 11, test 1, is the shuffled one; labels move from patient to
patient, all of a patient's together, so a protocol that lets a patient leak would show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from embedcache.embeddings import LabelledEmbeddings
from embedcache.images import picture_size
from embedcache.pipeline import state
from embedcache.pipeline.cohorts import CohortOptions
from embedcache.pipeline.probing import ProbeOptions, Question, RunOutcome, answer, ask, load_rows
from embedcache.runs import Estimate, is_headline
from embedcache.workspace import Workspace

RANDOM = "random:"  # how the names of encoders with random weights begin


def controls(
    workspace: Workspace,
    outcomes: Sequence[RunOutcome],
    cohort_options: CohortOptions,
    options: ProbeOptions,
) -> Iterator[RunOutcome]:
    """Yield the controls of a sweep, as runs of their own.

    Parameters
    ----------
    outcomes
        The encoders' probes, with at least one; the best of them lends its rows to the shuffled
        labels.
    cohort_options, options
        As the encoders were asked.
    """
    question = ask(workspace, cohort_options, options)
    yield answer(question, "control", _plain_rows(question, "majority"), "majority")
    features = _metadata(question)
    if features.shape[1]:
        yield answer(question, "control", _plain_rows(question, "metadata", features), "metadata")
    best = max(outcomes, key=lambda outcome: headline(outcome).value).run
    store = state.find_store(workspace, f"{best.encoder}@{best.fingerprint}")
    train, *_ = load_rows(question, store)
    label = _shuffled(train, np.random.default_rng(cohort_options.seed))
    shuffled = replace(train, encoder=f"shuffled labels ({best.encoder})", label=label)
    yield answer(question, "control", [shuffled], best.fingerprint)
    state.renew_catalog(workspace, question.cohorts.images)


def headline(outcome: RunOutcome) -> Estimate:
    """Return the score that a run is judged by, in-domain."""
    return next(
        one
        for one in outcome.estimates
        if is_headline(outcome.run, one) and (one.role, one.scoring) == ("in-domain", "all")
    )


def not_beaten(outcomes: Sequence[RunOutcome], others: Sequence[RunOutcome]) -> Iterator[str]:
    """Say of each probe which controls lie within or above its interval."""
    chance = [*others, *(one for one in outcomes if one.run.encoder.startswith(RANDOM))]
    for outcome in outcomes:
        own = headline(outcome)
        for control in chance:
            score = headline(control).value
            if control is not outcome and not own.low > score:
                yield (
                    f"'{outcome.run.encoder}', {own.value:.3f} [{own.low:.3f}, {own.high:.3f}], "
                    f"does not clear the control '{control.run.encoder}', {score:.3f}"
                )


def _plain_rows(
    question: Question, name: str, features: NDArray[np.float32] | None = None
) -> list[LabelledEmbeddings]:
    """Return rows of given features, or of one that never varies."""
    cohorts = question.cohorts
    if features is None:
        features = np.zeros((cohorts.images.table.num_rows, 1), np.float32)
    return [
        LabelledEmbeddings(
            encoder=name,
            fingerprint=name,
            X=features[list(numbers)],
            image_id=cohorts.column("image_id", numbers),
            patient_id=cohorts.column("patient_id", numbers),
            cohort=(cohort,) * len(numbers),
            label=tuple(cohorts.labels[number] for number in numbers),
        )
        for cohort, numbers in {cohorts.train_cohort: cohorts.train, **cohorts.external}.items()
    ]


def _metadata(question: Question) -> NDArray[np.float32]:
    """Return what is known of each image without looking at it: device, and size where it is here.

    One column a device of the training cohort, and width, height and their ratio, by logarithm.
    """
    images, columns = question.cohorts.images, []
    if "device" in images.table.column_names:
        device = np.array([str(value or "") for value in images.table["device"].to_pylist()])
        known = np.unique(device[list(question.cohorts.train)])
        columns += [device == name for name in known]
    if images.files:
        size = np.log([np.maximum(picture_size(file.path), 1) for file in images.files])
        columns += [*size.T, size[:, 0] - size[:, 1]]
    rows = images.table.num_rows
    return np.array(columns, np.float32).T if columns else np.empty((rows, 0), np.float32)


def _shuffled(rows: LabelledEmbeddings, chance: np.random.Generator) -> tuple[str, ...]:
    """Return the labels with their patients in another order, laid over the images anew."""
    patient, label = np.array(rows.patient_id), np.array(rows.label)
    names = np.unique(patient)
    place = {name: number for number, name in enumerate(chance.permutation(names))}
    taken = np.argsort([place[name] for name in patient], kind="stable")
    laid = np.argsort(patient, kind="stable")
    shuffled = np.empty_like(label)
    shuffled[laid] = label[taken]
    return tuple(shuffled.tolist())
