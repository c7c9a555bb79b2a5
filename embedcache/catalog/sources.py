"""The items that a catalog is made of: listed cheaply, loaded only where the catalog lacks them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    import pyarrow as pa

Kind = Literal["manifest", "encoder", "folds", "run", "audit", "comparison"]

# The tables of each kind of item, and the column by which the rows of one item are found in them.
# There is one manifest, which has the whole of `images`.
TABLES: Final[Mapping[Kind, tuple[str, ...]]] = {
    "manifest": ("images",),
    "encoder": ("encoders", "internal.stored_rows", "internal.stored_failures"),
    "folds": ("folds",),
    "run": ("runs", "predictions", "fold_predictions", "metrics"),
    "audit": ("audits", "audit", "audit_scores"),
    "comparison": (
        *("comparisons", "standings", "pairs", "drops", "class_shares", "parts", "subgroups"),
    ),
}
ROW_KEYS: Final[Mapping[Kind, str]] = {
    "encoder": "fingerprint",
    "folds": "folds_id",
    "run": "run_id",
    "audit": "audit_id",
    "comparison": "comparison_id",
}


@dataclass(frozen=True, slots=True)
class SourceItem:
    """One item of a workspace that gives rows to the catalog.

    Parameters
    ----------
    kind
        'manifest' (exactly one), 'encoder', 'folds', 'run', 'audit' (one at most) or 'comparison'.
    name
        Name of the item, unique within its kind: the manifest's path and data root, an encoder's
        folder, a fold table's file, a run id, the file of the findings or of a comparison.
    stamp
        Text that changes with the item's content; made without reading the content.
    load
        Function that reads the item and returns its rows by table of `TABLES`. A table that has no
        rows may be left out. Columns are matched by name; an absent one is NULL.
    """

    kind: Kind
    name: str
    stamp: str
    load: Callable[[], Mapping[str, pa.Table]]


@dataclass(frozen=True, slots=True)
class EncoderRow:
    """A row of `encoders`; docs/sql.md describes the columns.

    Parameters
    ----------
    encoder, fingerprint, architecture, output, precision, weights_sha256, licence, created
        Facts of the encoder, as its `encoder.json` says them.
    dim
        Length of an embedding.
    n_rows, n_failed
        Number of embeddings held, and of images recorded as failed.
    size_bytes
        Bytes of the live rows on disk.
    preprocess
        Settings of the preprocessing, as JSON.
    seconds
        Seconds spent by stage of extraction, over all passes, as JSON.
    """

    encoder: str
    fingerprint: str
    dim: int
    n_rows: int
    n_failed: int
    size_bytes: int
    architecture: str
    output: str
    precision: str
    weights_sha256: str
    licence: str
    preprocess: str
    seconds: str
    created: str


@dataclass(frozen=True, slots=True)
class RunRow:
    """A row of `runs`; docs/sql.md describes the columns. None where a run has no such value.

    Parameters
    ----------
    run_id, kind, encoder, fingerprint, created, seconds
        Name of the run, its kind, the encoder, the time (UTC, ISO 8601) and the duration.
    task, label_column, train_cohort, folds_id, n_folds
        The question: task, manifest column of the label, cohort that trains, fold table.
    probe, protocol, rule, regime, external_by, seed, n_resamples
        The method: probe family, protocol, rule of choice, what a fine-tuning run trains, what
        predicts external cohorts, seed of the random streams, number of resamples of patients.
    question, method, settings, results
        JSON: the question, the method, both in one object, and what was chosen.
    """

    run_id: str
    kind: str
    task: str | None
    encoder: str
    fingerprint: str
    probe: str | None
    protocol: str | None
    rule: str | None
    regime: str | None
    external_by: str | None
    label_column: str | None
    train_cohort: str | None
    n_folds: int | None
    folds_id: str | None
    seed: int | None
    n_resamples: int | None
    created: str
    seconds: float
    question: str
    method: str
    settings: str
    results: str


def one_row(row: EncoderRow | RunRow) -> pa.Table:
    """Return a table of one row."""
    import pyarrow as pa

    return pa.Table.from_pylist([asdict(row)])
