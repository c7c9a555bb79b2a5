"""What comparisons store: a document each, with the rows that SQL has of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import Any, Final

import pyarrow as pa

from embedcache.errors import StoreWriteError
from embedcache.files.backend import Location
from embedcache.files.documents import known_shape, read_document, seal
from embedcache.files.durable import utc_now
from embedcache.scoring.compare import STATISTICS
from embedcache.verbs.compare_report import CompareReport
from embedcache.verbs.result_files import ResultFiles, columns, typed_tables
from embedcache.workspace import COMPARISON_DOCUMENT, Workspace

_log = logging.getLogger(__name__)

Row = dict[str, Any]
_ID: Final = "comparison_id"
_SPREAD: Final = "value low high"
_SCHEMAS: Final = {
    "comparisons": columns(
        text=f"{_ID} created statistics task metric level scoring by_column",
        number="margin",
        count="n_resamples n_runs",
        whole="seed",
        texts="notes",
    ),
    "standings": columns(
        text=f"{_ID} cohort role name run_id",
        number=f"{_SPREAD} rank p_best",
        count="n_repeats n_patients n_images",
        counts="groups",
        numbers="values",
        texts="run_ids",
    ),
    "pairs": columns(
        text=f"{_ID} cohort better worse verdict",
        number="difference low high p p_corrected p_equal error_patients error_repeats",
        whole="patients_needed",
        numbers="values",
    ),
    "drops": columns(text=f"{_ID} cohort name part", number=_SPREAD),
    "class_shares": columns(text=f"{_ID} cohort name label", number="home outside estimated"),
    "parts": columns(
        text=f"{_ID} cohort name part", number=_SPREAD, count="n_patients n_images"
    ),
    "subgroups": columns(
        text=f"{_ID} cohort name subgroup reason",
        number=f"{_SPREAD} p p_corrected p_worst worst_low worst_high",
        count="n_patients",
        flag="is_worst",
        texts="classes",
    ),
}  # fmt: skip


def store_comparison(workspace: Workspace, report: CompareReport) -> bool:
    """Store a comparison, and return whether it is new.

    An equal one that is there stays. The log tells of a storage that cannot be written: the
    comparison is none the worse.
    """
    file = workspace.comparisons / f"{report.comparison_id}.json"
    if file.exists():
        return False
    try:
        file.put(seal(_document(report)))
    except FileExistsError:  # another process was faster
        return False
    except StoreWriteError as error:
        _log.warning("the comparison is not stored: %s", error)
        return False
    return True


def _document(report: CompareReport) -> Row:
    """Return a comparison as it is stored."""
    options = asdict(report.options)
    notes = [f"{c.cohort}: {note}" for c in report.cohorts for note in c.comparison.notes]
    asked = ("level", "scoring", "margin", "n_resamples", "seed")
    return {
        _ID: report.comparison_id,
        "created": utc_now(),
        "statistics": STATISTICS,
        "task": report.task,
        "metric": report.metric,
        **{name: options[name] for name in asked},
        "by_column": options["by"],
        "n_runs": len(report.runs),
        "notes": [*report.notes, *notes],
        "standings": _finite(_standings(report)),
        "pairs": _finite(
            {"cohort": c.cohort, **asdict(pair)}
            for c in report.cohorts
            for pair in c.comparison.pairs
        ),
        "drops": _finite(_drops(report)),
        "class_shares": _finite(
            {"cohort": drop.cohort, "name": drop.name, **asdict(share)}
            for drop in report.drops
            for share in drop.shares
        ),
        "parts": _finite(_parts(report)),
        "subgroups": _finite(_subgroups(report)),
    }


def _finite(rows: Iterable[Row]) -> list[Row]:
    """Return rows as JSON can hold them: None for what is not a number."""
    return [
        {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in row.items()
        }
        for row in rows
    ]


def _standings(report: CompareReport) -> Iterator[Row]:
    for cohort in report.cohorts:
        for standing in cohort.comparison.standings:
            run_ids = report.runs[standing.name]
            yield {
                "cohort": cohort.cohort,
                "role": cohort.role,
                **asdict(standing),
                "run_id": run_ids[0],
                "run_ids": run_ids,
                "n_repeats": len(run_ids),
                "n_patients": cohort.n_patients,
                "n_images": cohort.n_images,
            }


def _drops(report: CompareReport) -> Iterator[Row]:
    for drop in report.drops:
        shift = {} if drop.shift is None else asdict(drop.shift)
        by_metric = {name: asdict(lost) for name, lost in drop.by_metric.items()}
        for part, lost in {"drop": asdict(drop.drop), **shift, **by_metric}.items():
            yield {"cohort": drop.cohort, "name": drop.name, "part": part, **lost}


def _parts(report: CompareReport) -> Iterator[Row]:
    for part in report.parts:
        row = asdict(part)
        score = row.pop("score")
        yield row | score


def _subgroups(report: CompareReport) -> Iterator[Row]:
    for run in report.subgroups:
        of_run = {"cohort": run.cohort, "name": run.name}
        for shortfall in run.shortfalls:
            is_worst = shortfall.subgroup == run.worst
            row = {**of_run, **asdict(shortfall), "is_worst": is_worst}
            if run.largest is not None and is_worst:
                row |= {"worst_low": run.largest.low, "worst_high": run.largest.high}
            yield row
        for subgroup, reason in run.undefined.items():
            yield {**of_run, "subgroup": subgroup, "is_worst": False, "reason": reason}


def comparison_tables(file: Location) -> dict[str, pa.Table]:
    """Return a stored comparison as the tables of the catalog.

    Raises
    ------
    StoreCorruptError
        The document does not match its checksum.
    StoreReadError
        It is whole, but none of a comparison.
    """
    document = read_document(file)
    with known_shape(file):
        rows = {**document, "comparisons": [document]}
        return typed_tables(rows, _SCHEMAS, _ID, file.name.removesuffix(".json"))


class ComparisonFiles(ResultFiles):
    """Stored comparisons as one kind of artefact."""

    verb = "compare"

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return "comparisons"

    def items(self) -> Sequence[Location]:
        """Return the document of each comparison."""
        names = [entry.name for entry in self.folder.list()]
        return [self.folder / name for name in names if fnmatchcase(name, COMPARISON_DOCUMENT)]

    def read(self, item: Location) -> object:
        """Return the tables of a comparison."""
        return comparison_tables(item)
