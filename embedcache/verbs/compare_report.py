"""What `compare` is asked, and what it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Final

import pyarrow as pa

from embedcache.audit.finding import AuditFinding, verdict
from embedcache.data.checks import check_above_0, check_at_least, check_choice
from embedcache.data.predictions import Answers, Predictions, Role
from embedcache.data.tabular import Tabular
from embedcache.data.task_names import TaskName
from embedcache.scoring.calibration import Bin
from embedcache.scoring.choices import Level, Scoring
from embedcache.scoring.compare import Comparison, Pair
from embedcache.scoring.estimates import Estimate
from embedcache.scoring.jackknife import Spread
from embedcache.scoring.shift import ClassShare, Shift
from embedcache.scoring.subgroups import Shortfall


@dataclass(frozen=True, slots=True)
class CompareOptions:
    """What to compare, and how.

    Parameters
    ----------
    models
        Encoders, `name` or `name@fingerprint`; None for every one with a run.
    runs
        Names of runs; None for the latest run of each encoder and method, with its repeats.
    metric
        Name of a score of the runs' task, such as 'macro_f1'; None for the one that the task is
        judged by.
    level
        What is scored: each 'image', or each 'patient'.
    scoring
        Whether 'all' classes may be predicted, or those of the cohort only ('masked').
    by
        'class' or a manifest column: the metric within each of its values too; None for neither.
    margin
        Difference within which two runs count as equal, above 0; None to look for none.
    n_resamples
        Number of draws of signs behind p, ranks and P(best).
    seed
        Seed of the signs.
    """

    models: tuple[str, ...] | None = None
    runs: tuple[str, ...] | None = None
    metric: str | None = None
    level: Level = "image"
    scoring: Scoring = "all"
    by: str | None = None
    margin: float | None = None
    n_resamples: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("level", self.level, Level)
        check_choice("scoring", self.scoring, Scoring)
        check_above_0("margin", self.margin)
        check_at_least("n_resamples", self.n_resamples, 1)
        check_at_least("seed", self.seed, 0)

    def masks(self, answers: Answers) -> bool:
        """Return whether only classes of the cohort count; of one class, that would say nothing."""
        is_of_one = isinstance(answers, Predictions) and len(answers.own_classes) == 1
        return self.scoring == "masked" and not is_of_one


@dataclass(frozen=True, slots=True)
class CohortComparison:
    """All runs on one cohort.

    Parameters
    ----------
    cohort, role
        Name of the cohort, and its part: 'in-domain' or 'external'.
    classes
        Classes of the model that occur in the cohort; empty for another task.
    n_patients, n_images
        Number of patients and images behind each score.
    comparison
        Standings and pairs.
    """

    cohort: str
    role: Role
    classes: tuple[str, ...]
    n_patients: int
    n_images: int
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class Drop:
    """What a run loses on an external cohort, both scored over that cohort's classes.

    Parameters
    ----------
    name, cohort
        Name of the run and of the external cohort.
    drop
        Score in-domain less that outside; of errors, the reverse.
    shift
        The drop taken apart; None where the score is not made of confusion tables.
    by_metric
        The same of balanced accuracy and of AUROC, on which class shares have no hold, or little,
        beside that of the metric; empty for other tasks than classification.
    shares
        Share of each class of the model, at home and outside; empty likewise.
    """

    name: str
    cohort: str
    drop: Spread
    shift: Shift | None = None
    by_metric: Mapping[str, Spread] = field(default_factory=dict)
    shares: tuple[ClassShare, ...] = ()


@dataclass(frozen=True, slots=True)
class Part:
    """A run's score within one value of a column, or of one class."""

    name: str
    cohort: str
    part: str
    n_patients: int
    n_images: int
    score: Spread


@dataclass(frozen=True, slots=True)
class Subgroups:
    """How far each value of a column is behind the rest of a cohort, for one run.

    Parameters
    ----------
    name, cohort
        Name of the run and of the cohort.
    shortfalls
        Values of the column, the furthest behind first; those of one patient last.
    worst
        Value that is the furthest behind; None where none has two patients.
    largest
        The shortfall of that one, with an interval that allows for the choice; None likewise.
    undefined
        Values that have no shortfall, and why.
    """

    name: str
    cohort: str
    shortfalls: tuple[Shortfall, ...]
    worst: str | None
    largest: Spread | None
    undefined: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Calibration:
    """How far a run's probabilities can be believed on one cohort.

    Parameters
    ----------
    name, cohort
        Name of the run and of the cohort.
    temperature
        Temperature that was fitted, median over the images; None where none was.
    bins
        Bins of the reliability diagram, before any temperature.
    """

    name: str
    cohort: str
    temperature: float | None
    bins: tuple[Bin, ...]


_STANDINGS: Final = pa.schema(
    [
        ("cohort", pa.string()),
        ("name", pa.string()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
        ("behind_best", pa.float64()),
        ("p_corrected", pa.float64()),
        ("verdict", pa.string()),
        ("patients_needed", pa.int64()),
        ("rank", pa.float64()),
        ("p_best", pa.float64()),
        ("n_patients", pa.int64()),
        ("n_images", pa.int64()),
        ("drop", pa.float64()),
        ("drop_mix", pa.float64()),
        ("drop_rest", pa.float64()),
        ("prior_adjusted", pa.float64()),
        ("n_repeats", pa.int64()),
        ("run_id", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True, repr=False)
class CompareReport(Tabular):
    """Runs against each other.

    Parameters
    ----------
    comparison_id
        Name of the comparison: equal ones have the same.
    options
        What was asked.
    task
        Task of the runs.
    metric
        Name of the score that runs are compared by.
    runs
        Names of the stored runs of each encoder and method, its repeats by ascending seed, by the
        name that it has here.
    cohorts
        All runs on each cohort.
    drops
        What each run loses on external cohorts.
    parts
        Scores within each value of a column; empty unless `by` was asked for.
    subgroups
        Each value of the column against the rest of a cohort; empty unless `by` is a column.
    calibration
        How far probabilities can be believed; empty for other tasks than classification.
    estimates
        Scores of calibration and of operating points, by name, as stored with the runs.
    notes
        Runs and cohorts that were left out, with the reason.
    findings
        Faults of the split that the table of images tells; see docs/audit.md.
    """

    comparison_id: str
    options: CompareOptions
    task: TaskName
    metric: str
    runs: dict[str, tuple[str, ...]]
    cohorts: tuple[CohortComparison, ...]
    drops: tuple[Drop, ...]
    parts: tuple[Part, ...]
    subgroups: tuple[Subgroups, ...]
    calibration: tuple[Calibration, ...]
    estimates: dict[str, tuple[Estimate, ...]]
    notes: tuple[str, ...]
    findings: tuple[AuditFinding, ...] = ()

    @property
    def leaks(self) -> bool:
        """Whether a score is wrong: an image or a patient is on both sides of the split."""
        return verdict(self.findings) == "leaks"

    def table(self) -> pa.Table:
        """Return how the runs stand, one row a cohort and run, the best first; see `runs`."""
        drops = {(drop.cohort, drop.name): drop for drop in self.drops}
        rows = [
            {
                "cohort": cohort.cohort,
                "metric": self.metric,
                **asdict(standing),
                **_behind(cohort.comparison.behind_best(standing.name)),
                **_dropped(drops.get((cohort.cohort, standing.name))),
                "n_patients": cohort.n_patients,
                "n_images": cohort.n_images,
                "n_repeats": len(self.runs[standing.name]),
                "run_id": self.runs[standing.name][0],
            }
            for cohort in self.cohorts
            for standing in cohort.comparison.standings
        ]
        return pa.Table.from_pylist(rows, schema=_STANDINGS)


def _dropped(drop: Drop | None) -> dict[str, float]:
    """Return what a run loses on a cohort, and the parts; nothing where it was trained on it."""
    if drop is None:
        return {}
    shift = drop.shift
    parts = {} if shift is None else {"drop_mix": shift.mix, "drop_rest": shift.rest}
    won = {} if shift is None else {"prior_adjusted": shift.prior}
    return {name: part.value for name, part in {"drop": drop.drop, **parts, **won}.items()}


def _behind(pair: Pair | None) -> dict[str, float | str | None]:
    """Return how far a run is behind the best one, and whether; nothing for the best itself."""
    if pair is None:
        return {}
    return {
        "behind_best": pair.difference,
        "p_corrected": pair.p_corrected,
        "verdict": pair.verdict,
        "patients_needed": pair.patients_needed,
    }
