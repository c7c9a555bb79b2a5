"""`compare`: runs against each other, on the same images and folds."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import chain
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.cohorts import label_column
from embedcache.data.predictions import Answers, Predictions
from embedcache.data.snapshots import find_snapshot
from embedcache.errors import EmbedcacheError, RunError
from embedcache.files.durable import canonical_json
from embedcache.runs.contenders import Contender, Contest, choose_runs, contest_of
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.record import command_lines
from embedcache.scoring.answers import subject_of, subjects_of
from embedcache.scoring.calibration import reliability
from embedcache.scoring.compare import STATISTICS, spread
from embedcache.scoring.compare import compare as compare_subjects
from embedcache.scoring.estimates import HEADLINES, Estimate
from embedcache.scoring.evaluate import SCORES
from embedcache.scoring.repeats import redrawn_folds
from embedcache.scoring.subject import Subject, check_metric
from embedcache.verbs.audited import findings_of_answers
from embedcache.verbs.catalog import renew_catalog
from embedcache.verbs.compare_elsewhere import drop_of, subgroups_of, undefined
from embedcache.verbs.compare_report import (
    Calibration,
    CohortComparison,
    CompareOptions,
    CompareReport,
    Drop,
    Part,
    Subgroups,
)
from embedcache.verbs.comparison_files import store_comparison
from embedcache.verbs.session import Session

CALIBRATION: Final = tuple(
    f"{name}{suffix}"
    for name in ("log_loss", "brier", "ece", "calibration_slope", "calibration_intercept")
    for suffix in ("", "_calibrated")
)
OPERATING: Final = tuple(
    f"{name}_at_spec95" for name in ("threshold", "sensitivity", "specificity")
)
# What a score over all classes or labels is within one of them.
_OF_CLASS: Final = {
    "macro_f1": "f1",
    "balanced_accuracy": "recall",
    "accuracy": "recall",
    "auroc": "auroc",
}


def compare(session: Session, options: CompareOptions) -> CompareReport:
    """Compare stored runs, and store what was found; fits nothing.

    Raises
    ------
    RunError
        There is no such run, metric or class, or both runs and encoders are named.
    ManifestError
        `by` is no column of the manifest.
    """
    if options.runs and options.models:
        raise RunError(
            f"{len(options.runs)} runs and {len(options.models)} encoders are named; name runs, or "
            "encoders, not both"
        )
    contest = choose_runs(session.runs, options.models, options.runs, options.metric)
    values: dict[str, str] = {}
    if options.by not in {None, "class"}:
        names = session.images.table["image_id"].to_pylist()
        column = label_column(session.images, str(options.by))
        values = dict(zip(names, column, strict=True))
    report = _Comparing(contest, options, values).report()
    if store_comparison(session.workspace, report):
        # A comparison needs no manifest; a query that does says what is wrong with it.
        with contextlib.suppress(EmbedcacheError):
            renew_catalog(session)
    return _audited(report, session, contest)


def _audited(report: CompareReport, session: Session, contest: Contest) -> CompareReport:
    """Return a report with the faults of the split, by the images as the leading run had them."""
    leader = next(iter(contest.contenders.values()))
    table = find_snapshot(session.workspace, leader.record.request.data.manifest)
    keys: dict[str, str | None] = {}
    notes = report.notes
    if table is None:
        run_id = leader.record.run_id
        notes += (f"the manifest of {run_id} is not stored: equal images are not looked for",)
    else:
        keys = dict(zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    findings = findings_of_answers(list(contest.cohorts.values()), keys)
    return replace(report, findings=tuple(findings), notes=notes)


def compare_outcomes(outcomes: Sequence[RunOutcome], options: CompareOptions) -> CompareReport:
    """Compare runs in memory; see `compare`."""
    return _Comparing(contest_of(outcomes), options, {}).report()


class _Comparing:
    """One comparison under way.

    Parameters
    ----------
    contest
        Runs that can be compared, and what on.
    options
        What is asked.
    values
        Value of each image in the column that scores are split by, by `image_id`.
    """

    def __init__(
        self, contest: Contest, options: CompareOptions, values: Mapping[str, str]
    ) -> None:
        self.contest, self.options, self.values = contest, options, values
        self.task = next(iter(contest.contenders.values())).record.task
        self.metric = options.metric or HEADLINES[self.task]
        # Counted in whole cohorts; runs without folds, as zero-shot, stand beside those with them.
        self.n_folds: dict[str, int] = {}
        for contender in contest.contenders.values():
            for cohort, repeats in contender.cohorts.items():
                drawn = redrawn_folds([answers.fold for answers in repeats])
                self.n_folds[cohort] = max(drawn, self.n_folds.get(cohort, 1))

    def report(self) -> CompareReport:
        contest, cohorts = self.contest, self.contest.cohorts
        reasons = {name: self._refusal(cohort) for name, cohort in cohorts.items()}
        defined = [name for name, error in reasons.items() if error is None]
        if not defined:
            raise next(error for error in reasons.values() if error is not None)
        notes = [
            f"'{name}' left out: {self.metric} is not defined on its classes"
            for name in cohorts
            if name not in defined
        ]
        is_by_column = self.options.by not in {None, "class"}
        by_column = defined if is_by_column else ()
        notes += chain.from_iterable(map(self._undefined_parts, by_column))
        stored = {
            name: tuple(_stored_estimates(contender.estimates, self.options))
            for name, contender in contest.contenders.items()
        }
        others = [name for name in stored if stored[name] and self._version_of(name) != SCORES]
        return CompareReport(
            comparison_id=self._comparison_id(),
            options=self.options,
            task=self.task,
            metric=self.metric,
            runs={name: c.run_ids for name, c in contest.contenders.items()},
            cohorts=tuple(self._on_cohort(cohorts[name]) for name in defined),
            drops=tuple(chain.from_iterable(map(self._drops, defined))),
            parts=tuple(chain.from_iterable(map(self._parts, defined))) if self.options.by else (),
            subgroups=tuple(chain.from_iterable(map(self._subgroups, by_column))),
            calibration=tuple(self._calibrations()),
            estimates={**stored, **dict.fromkeys(others, ())},
            notes=(*contest.notes, *notes, *self._version_notes(others)),
        )

    def _version_of(self, name: str) -> str:
        """Return the version of the scores that were stored with a contender's run."""
        return str(self.contest.contenders[name].record.request.constants.get("scores", "none"))

    def _version_notes(self, names: Sequence[str]) -> Iterator[str]:
        """Yield one note on contenders whose stored scores are of another version."""
        if names:
            versions = ", ".join(f"{name} ({self._version_of(name)})" for name in names)
            again = command_lines(self.contest.contenders[name].record for name in names)
            yield (
                f"stored calibration and operating points left out, for they are not by {SCORES}: "
                f"{versions}; {again} makes them anew"
            )

    def _comparison_id(self) -> str:
        """Return a digest of all that decides the comparison."""
        contest = self.contest
        # By its tables too: a training that is made again may predict otherwise.
        runs = {
            name: [(r.run_id, *(t.crc32c for t in r.tables.values())) for r in contender.records]
            for name, contender in contest.contenders.items()
        }
        columns = {
            name: self._column(answers).tolist() for name, answers in contest.cohorts.items()
        }
        asked = replace(self.options, models=None, runs=None, metric=self.metric)
        decisive = [STATISTICS, runs, columns, asdict(asked)]
        return f"compare-{hashlib.sha256(canonical_json(decisive)).hexdigest()[:12]}"

    def _refusal(self, answers: Answers) -> RunError | None:
        """Return why the metric is not defined on a cohort; None where it is."""
        try:
            check_metric(self.metric, self._subject(answers))
        except RunError as error:
            return error
        return None

    def _subject(self, answers: Answers) -> Subject:
        masked = self.options.masks(answers)
        return subject_of(answers, level=self.options.level, masked=masked)

    def _subjects(self, repeats: Sequence[Answers]) -> list[Subject]:
        cohort, masked = repeats[0].cohort[0], self.options.masks(repeats[0])
        return [
            *subjects_of(
                repeats, level=self.options.level, masked=masked, n_folds=self.n_folds[cohort]
            )
        ]

    def _on(self, cohort: str) -> Iterator[tuple[str, Contender, tuple[Answers, ...]]]:
        for name, contender in self.contest.contenders.items():
            if cohort in contender.cohorts:
                yield name, contender, contender.cohorts[cohort]

    def _on_cohort(self, answers: Answers) -> CohortComparison:
        cohort = answers.cohort[0]
        subjects = {name: self._subjects(theirs) for name, _, theirs in self._on(cohort)}
        return CohortComparison(
            cohort=cohort,
            role=answers.role,
            classes=answers.own_classes if isinstance(answers, Predictions) else (),
            n_patients=len(set(answers.patient_id)),
            n_images=len(answers.image_id),
            comparison=compare_subjects(
                subjects,
                self.metric,
                margin=self.options.margin,
                n_resamples=self.options.n_resamples,
                seed=self.options.seed,
            ),
        )

    def _drops(self, cohort: str) -> Iterator[Drop]:
        """Yield the drop of each run from its training cohort, over the classes of the other."""
        for name, contender, _ in self._on(cohort):
            if contender.trained_on not in {None, cohort}:
                yield drop_of(name, contender, cohort, self.metric, self.options, self._subjects)

    def _parts(self, cohort: str) -> Iterator[Part]:
        for name, _, repeats in self._on(cohort):
            if self.options.by == "class":
                yield from self._class_parts(name, repeats)
                continue
            column = self._column(repeats[0])
            for value in np.unique(column):
                part = [answers.take(np.flatnonzero(column == value)) for answers in repeats]
                if undefined(part, self.metric, self._subjects) is None:
                    yield self._part(name, str(value), part, part[0], self.metric)

    def _column(self, answers: Answers) -> NDArray[np.str_]:
        """Return the value of each image in the column that scores are split by."""
        return np.array([self.values.get(image) or "(none)" for image in answers.image_id])

    def _subgroups(self, cohort: str) -> Iterator[Subgroups]:
        for name, _, repeats in self._on(cohort):
            column = self._column(repeats[0])
            if len(np.unique(column)) > 1:
                yield subgroups_of(name, repeats, column, self.metric, self.options, self._subjects)

    def _undefined_parts(self, cohort: str) -> Iterator[str]:
        """Say in which values of the column a score is not defined, and why."""
        answers = self.contest.cohorts[cohort]
        column = self._column(answers)
        for value in np.unique(column):
            part = answers.take(np.flatnonzero(column == value))
            reason = undefined([part], self.metric, self._subjects)
            if reason is not None:
                yield f"{self.options.by} '{value}' of '{cohort}' left out: {reason}"

    def _class_parts(self, name: str, repeats: Sequence[Answers]) -> Iterator[Part]:
        answers = repeats[0]
        if not isinstance(answers, Predictions):
            raise RunError("--by class is for one class an image; name a manifest column")
        metric = _OF_CLASS.get(self.metric, self.metric.partition(":")[0])
        for label in answers.own_classes:
            of_class = answers.take(np.flatnonzero(np.array(answers.label) == label))
            yield self._part(name, label, repeats, of_class, f"{metric}:{label}")

    def _part(
        self, name: str, part: str, scored: Sequence[Answers], counted: Answers, metric: str
    ) -> Part:
        return Part(
            name=name,
            cohort=counted.cohort[0],
            part=part,
            n_patients=len(set(counted.patient_id)),
            n_images=len(counted.image_id),
            score=spread(self._subjects(scored), metric),
        )

    def _calibrations(self) -> Iterator[Calibration]:
        for name, contender in self.contest.contenders.items():
            for cohort, (answers, *_) in contender.cohorts.items():
                if isinstance(answers, Predictions):
                    fitted = answers.temperature
                    median = None if fitted is None else float(np.nanmedian(fitted))
                    units = self._subject(answers).calibrations[""]
                    yield Calibration(name, cohort, median, tuple(reliability(units)))


def _stored_estimates(estimates: Sequence[Estimate], options: CompareOptions) -> Iterator[Estimate]:
    """Yield the scores that were stored with the run and that are not computed here."""
    at_level = [score for score in estimates if score.level == options.level]
    # A cohort with all classes has no masked scores, and no cohort has masked operating points.
    masked = {s.cohort for s in at_level if s.scoring == options.scoring == "masked"}
    for score in at_level:
        scoring = "masked" if score.cohort in masked else "all"
        is_wanted = score.metric in CALIBRATION and score.scoring == scoring
        if is_wanted or score.metric in OPERATING:
            yield score
