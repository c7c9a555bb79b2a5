"""What a probe has to beat: rows that hold no picture, and labels that mean nothing.

Each control goes through the very protocol that the encoders go through; see `protocol.controls`
for what they are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.images import picture_size
from embedcache.data.predictions import Answers
from embedcache.files.cores import usable_cores
from embedcache.files.threads import ReadingThreads
from embedcache.protocol.controls import majority_features, metadata_features, shuffled_labels
from embedcache.protocol.protocols import check_method
from embedcache.runs.methods import ProbeMethod
from embedcache.runs.outcome import RunOutcome
from embedcache.scoring.answers import subject_of
from embedcache.scoring.compare import lead
from embedcache.scoring.estimates import Estimate
from embedcache.verbs.probe_run import ProbeOptions, probe_rows
from embedcache.verbs.session import Session, Study

RANDOM: Final = "random:"  # how the names of encoders with random weights begin
SHUFFLED: Final = "shuffled labels"


def control_runs(
    session: Session, study: Study, runs: Sequence[RunOutcome], options: ProbeOptions
) -> Iterator[RunOutcome]:
    """Yield the controls of some probes, as runs of their own.

    Parameters
    ----------
    session, study
        The workspace, and the question with its images and folds.
    runs
        The encoders' probes, at least one; the best of them lends its rows to shuffled labels.
    options
        Options of the encoders' probes.
    """
    [template, *_] = runs
    assert isinstance(template.record.method, ProbeMethod)
    # The probe of a control is always the same, so a grid for another does not fit it.
    method = check_method(
        replace(template.record.method, probe="logistic", grid=None), study.question.task
    )
    constant = majority_features(study.cohorts.images.table.num_rows)
    yield probe_rows(session, study, "control", _rows(study, "majority", constant), method, options)
    metadata = _metadata(study)
    if metadata.shape[1]:
        rows = _rows(study, "metadata", metadata)
        yield probe_rows(session, study, "control", rows, method, options)
    best = max(trained_runs(runs), key=lambda run: in_domain(run).value).record
    store = session.find_store(f"{best.encoder}@{best.fingerprint}")
    train, *_ = session.rows(study, store)
    label = shuffled_labels(train.patient_id, train.label, seed=study.question.seed)
    shuffled = replace(train, encoder=f"{SHUFFLED} ({best.encoder})", label=label)
    yield probe_rows(session, study, "control", [shuffled], method, options)


def in_domain(run: RunOutcome) -> Estimate:
    """Return the score that a run is judged by, in the training cohort out of fold."""
    return next(e for e in run.headlines if (e.role, e.scoring) == ("in-domain", "all"))


def trained_runs(runs: Sequence[RunOutcome]) -> list[RunOutcome]:
    """Return the probes of trained encoders; all of them where there are no others."""
    trained = [run for run in runs if not run.encoder.startswith(RANDOM)]
    return trained or list(runs)


def run_names(runs: Sequence[RunOutcome]) -> list[str]:
    """Return the encoder of each run, with its fingerprint where another one has that name."""
    names = [run.encoder for run in runs]
    return [
        name if names.count(name) == 1 else f"{name}@{run.record.fingerprint[:12]}"
        for name, run in zip(names, runs, strict=True)
    ]


def not_beaten(runs: Sequence[RunOutcome], controls: Sequence[RunOutcome]) -> Iterator[str]:
    """Say of each probe which controls it does not beat by more than its interval.

    The interval is that of the paired difference, on the same images; where there is none, as with
    labels that were shuffled, the probe's own interval has to lie above the control's score.
    """
    everyone = [*runs, *controls]
    names = run_names(everyone)
    trained = trained_runs(runs)
    for run, name in zip(runs, names, strict=False):
        for control, control_name in zip(everyone, names, strict=True):
            if run not in trained or control in trained:
                continue
            value, low = _lead(run, control)
            # Not `low <= 0`: an interval that is not a number clears nothing either.
            if not low > 0:
                yield (
                    f"'{name}' does not clear the control '{control_name}': {value:+.3f}, and the "
                    f"interval begins at {low:+.3f}"
                )


def _lead(run: RunOutcome, control: RunOutcome) -> tuple[float, float]:
    """Return by how much a probe leads a control in-domain, and the lower end of that."""
    estimate, score = in_domain(run), in_domain(control).value
    ours, theirs = _inside(run), _inside(control)
    # Shuffled labels are other labels; and an encoder may not have read all images.
    is_paired = (ours.image_id, ours.patient_id) == (theirs.image_id, theirs.patient_id)
    if control.encoder.startswith(SHUFFLED) or not is_paired:
        return estimate.value - score, estimate.low - score
    request = run.record.request
    draws = {"n_resamples": request.n_resamples, "seed": request.question.seed}
    spread = lead([subject_of(ours)], [subject_of(theirs)], estimate.metric, **draws)
    return spread.value, spread.low


def _inside(run: RunOutcome) -> Answers:
    return next(answers for answers in run.answers if answers.role == "in-domain")


def _rows(study: Study, name: str, features: NDArray[np.float32]) -> list[LabelledEmbeddings]:
    """Return features of every image as the rows of an encoder of that name."""
    cohorts = study.cohorts
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
        for cohort, numbers in cohorts.parts.items()
    ]


def _metadata(study: Study) -> NDArray[np.float32]:
    """Return what is known of each image without looking at it: device, and size."""
    images = study.cohorts.images
    device = None
    if "device" in images.table.column_names:
        device = [str(value or "") for value in images.table["device"].to_pylist()]
    with ReadingThreads(max(2, usable_cores())) as threads:
        sizes = np.array(list(threads.map(picture_size, [f.path for f in images.files])), np.int64)
    return metadata_features(study.cohorts.train, device=device, sizes=sizes)
