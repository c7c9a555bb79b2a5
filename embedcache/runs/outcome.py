"""What a run gave: its record, its scores, and what it predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from embedcache.data.predictions import Answers
from embedcache.data.tabular import Tabular, TabularSequence
from embedcache.errors import RunError
from embedcache.files.backend import Location
from embedcache.runs.record import RunRecord
from embedcache.scoring.choices import Level, Scoring
from embedcache.scoring.estimates import HEADLINES, Estimate

HEADLINE_SCHEMA: Final = pa.schema(
    [
        ("encoder", pa.string()),
        ("method", pa.string()),
        ("cohort", pa.string()),
        ("scoring", pa.string()),
        ("metric", pa.string()),
        ("label", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("n_patients", pa.int64()),
        ("n_images", pa.int64()),
        ("seed", pa.int64()),
        ("run_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, repr=False)
class RunOutcome(Tabular):
    """A run that was made now or found again.

    Parameters
    ----------
    record
        Its request, choices and notes.
    estimates
        Every score with its interval.
    answers
        Predictions of each cohort, that of the training cohort first.
    was_cached
        Whether the same run had been made before.
    folder
        Folder of the run.
    """

    record: RunRecord
    estimates: tuple[Estimate, ...] = field(repr=False)
    answers: tuple[Answers, ...] = field(repr=False)
    was_cached: bool
    folder: Location

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.record.run_id

    @property
    def encoder(self) -> str:
        """Name of the encoder."""
        return self.record.encoder

    @property
    def n_skipped(self) -> int:
        """Number of images left out because they could not be read."""
        return self.record.n_skipped

    @property
    def headlines(self) -> list[Estimate]:
        """Scores that a run is judged by, over images: one or two a cohort."""
        metric = HEADLINES[self.record.task]
        if self.record.kind == "curve":
            # Named apart, lest a score of few patients is taken for one of all.
            metric = f"{metric}_by_patients"
        return [e for e in self.estimates if (e.metric, e.level) == (metric, "image")]

    def score(
        self,
        metric: str,
        *,
        cohort: str | None = None,
        label: str = "",
        level: Level = "image",
        scoring: Scoring = "all",
    ) -> Estimate:
        """Return one score with its interval.

        Parameters
        ----------
        metric
            Name of the score, such as 'macro_f1'; see docs/protocol.md, 'Scores'.
        cohort
            Name of the cohort; None for the training cohort, tested out of fold.
        label
            Class or label that the score is of; '' for one over all of them.
        level
            What is scored: each 'image', or each 'patient'.
        scoring
            Whether 'all' classes may be predicted, or those of the cohort only ('masked').

        Raises
        ------
        RunError
            The run has no such score; names what there is.
        """
        wanted = (metric, label, level, scoring)
        for estimate in self.estimates:
            is_cohort = (
                estimate.role == "in-domain" if cohort is None else estimate.cohort == cohort
            )
            key = (estimate.metric, estimate.label, estimate.level, estimate.scoring)
            if is_cohort and key == wanted:
                return estimate
        cohorts = ", ".join(dict.fromkeys(e.cohort for e in self.estimates))
        metrics = ", ".join(dict.fromkeys(e.metric for e in self.estimates))
        raise RunError(
            f"run '{self.run_id}' has no {metric} of cohort '{cohort or 'that trains'}'"
            f"{f', label {label!r}' if label else ''} ({level}, {scoring}); it has {metrics} of "
            f"{cohorts}"
        )

    def table(self) -> pa.Table:
        """Return the scores that the run is judged by, one row a cohort."""
        return headline_table([self])

    def document(self) -> dict[str, Any]:
        """Return record and scores as JSON can hold them; predictions are asked for in SQL."""
        return {
            "run": self.record.document(),
            "estimates": self.estimates,
            "was_cached": self.was_cached,
            "folder": str(self.folder),
        }


@dataclass(frozen=True, slots=True, repr=False)
class RunOutcomes(TabularSequence[RunOutcome]):
    """The runs of a command.

    Parameters
    ----------
    runs
        Runs of each encoder, its repeats by ascending seed.
    """

    runs: tuple[RunOutcome, ...]

    def _items(self) -> tuple[RunOutcome, ...]:
        return self.runs

    def table(self) -> pa.Table:
        """Return the scores that the runs are judged by, one row a run and cohort."""
        return headline_table(self.runs)


def headline_table(runs: Sequence[RunOutcome]) -> pa.Table:
    """Return the scores that runs are judged by, one row a run and cohort."""
    rows = [
        {
            "encoder": run.encoder,
            "method": run.record.label,
            "cohort": score.cohort,
            "scoring": score.scoring,
            "metric": score.metric,
            "label": score.label,
            "value": score.value,
            "low": score.low,
            "high": score.high,
            "n_patients": score.n_patients,
            "n_images": score.n_images,
            "seed": run.record.seed,
            "run_id": run.run_id,
        }
        for run in runs
        for score in run.headlines
    ]
    return pa.Table.from_pylist(rows, schema=HEADLINE_SCHEMA)
