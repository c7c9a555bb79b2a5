"""What a probe has to beat: rows that hold no picture, and labels that mean nothing.

Each control goes through the very protocol that the encoders go through. Ojala and Garriga 2010,
Journal of Machine Learning Research 11, test 1, is the shuffled one; labels
move in the order of other patients, so that neighbouring frames keep having one label and a
protocol that lets a patient leak would show.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.images import picture_size
from embedcache.protocol.controls import majority_features, metadata_features, shuffled_labels
from embedcache.runs.record import is_headline
from embedcache.scoring.estimates import Estimate
from embedcache.verbs import state
from embedcache.verbs.cohorts import CohortOptions
from embedcache.verbs.compare import CompareOptions, compare_runs
from embedcache.verbs.probing import (
    ProbeOptions,
    Question,
    RunOutcome,
    answer,
    ask,
    load_rows,
    run_names,
)
from embedcache.workspace import Workspace

RANDOM: Final = "random:"  # how the names of encoders with random weights begin
SHUFFLED: Final = "shuffled labels"


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
    settings = replace(options.settings, probe="logistic")
    question = ask(workspace, cohort_options, replace(options, settings=settings))
    yield answer(question, "control", _plain_rows(question, "majority"), "majority")
    features = _metadata(question)
    if features.shape[1]:
        yield answer(question, "control", _plain_rows(question, "metadata", features), "metadata")
    best = max(contenders(outcomes), key=lambda outcome: headline(outcome).value).run
    store = state.find_store(workspace, f"{best.encoder}@{best.fingerprint}")
    train, *_ = load_rows(question, store)
    label = shuffled_labels(train.patient_id, train.label, seed=cohort_options.seed)
    shuffled = replace(train, encoder=f"{SHUFFLED} ({best.encoder})", label=label)
    yield answer(question, "control", [shuffled], best.fingerprint)
    state.renew_catalog(workspace, question.cohorts.images)


def headline(outcome: RunOutcome) -> Estimate:
    """Return the score that a run is judged by, in-domain."""
    return next(
        one
        for one in outcome.estimates
        if is_headline(outcome.run, one) and (one.role, one.scoring) == ("in-domain", "all")
    )


def contenders(outcomes: Sequence[RunOutcome]) -> list[RunOutcome]:
    """Return the probes of trained encoders; all of them where there are no others."""
    trained = [one for one in outcomes if not one.run.encoder.startswith(RANDOM)]
    return trained or list(outcomes)


def not_beaten(
    workspace: Workspace, outcomes: Sequence[RunOutcome], others: Sequence[RunOutcome]
) -> Iterator[str]:
    """Say of each probe which controls it does not beat by more than its interval.

    The interval is that of the paired difference, on the same images; where there is none, as with
    labels that were shuffled, the probe's own interval has to lie above the control's score.
    """
    names = run_names([*outcomes, *others])
    real = contenders(outcomes)
    for outcome, name in zip(outcomes, names, strict=False):
        for control, other in zip([*outcomes, *others], names, strict=True):
            if outcome not in real or control in real:
                continue
            value, low = _lead(workspace, outcome, control)
            if not low > 0:
                yield (
                    f"'{name}' does not clear the control '{other}': {value:+.3f}, and the "
                    f"interval begins at {low:+.3f}"
                )


def _lead(workspace: Workspace, outcome: RunOutcome, control: RunOutcome) -> tuple[float, float]:
    """Return by how much a probe leads a control in-domain, and the lower end of that."""
    own, score = headline(outcome), headline(control).value
    is_class = outcome.run.settings["task"] == "classification"
    if control.run.encoder.startswith(SHUFFLED) or not is_class:
        return own.value - score, own.low - score
    runs = (outcome.run.run_id, control.run.run_id)
    options = CompareOptions(runs=runs, n_resamples=outcome.run.settings["n_resamples"])
    report = compare_runs(workspace, options)
    inside = next(one for one in report.cohorts if one.role == "in-domain")
    if not inside.comparison.pairs:  # the encoder could not read all images
        return own.value - score, own.low - score
    (pair,) = inside.comparison.pairs
    ahead = report.runs[pair.better] == outcome.run.run_id
    return (pair.difference, pair.low) if ahead else (-pair.difference, -pair.high)


def _plain_rows(
    question: Question, name: str, features: NDArray[np.float32] | None = None
) -> list[LabelledEmbeddings]:
    """Return rows of given features, or of one that never varies."""
    cohorts = question.cohorts
    if features is None:
        features = majority_features(cohorts.images.table.num_rows)
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
    """Return what is known of each image without looking at it: device, and size."""
    images = question.cohorts.images
    device = None
    if "device" in images.table.column_names:
        device = [str(value or "") for value in images.table["device"].to_pylist()]
    sizes = np.array([picture_size(file.path) for file in images.files])
    features = metadata_features(question.cohorts.train, device=device, sizes=sizes)
    return features.reshape(images.table.num_rows, -1)
