"""One fit with its settings, what it predicted, and how that scored."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from embedcache.files.durable import canonical_json
from embedcache.scoring import estimates
from embedcache.scoring.estimates import Estimate


@dataclass(frozen=True, slots=True)
class Run:
    """The record of a run: enough to repeat it.

    Parameters
    ----------
    run_id
        `<kind>-<encoder>-<digest>` of everything that decides the result.
    kind
        'probe' or 'zeroshot'.
    encoder, fingerprint
        Whose embeddings.
    settings
        What was asked for: label column, cohorts, predicate, class map and what it says, grid,
        tolerances, seeds.
    data
        Digests of what it was applied to: embeddings, labels, folds.
    results
        What was chosen on the way, and the notes a reader of the scores must know.
    versions
        Of this project and of the libraries that decide the result.
    created, seconds
        For the record; they decide nothing.
    """

    run_id: str
    kind: str
    encoder: str
    fingerprint: str
    settings: dict[str, Any]
    data: dict[str, Any]
    results: dict[str, Any]
    versions: dict[str, Any]
    created: str
    seconds: float


def is_headline(run: Run, estimate: Estimate) -> bool:
    """Return whether an estimate is of the score, over images, that a run is judged by."""
    task = run.settings.get("task", "classification")
    return estimates.is_headline(estimate, task)


def run_id_of(kind: str, encoder: str, decisive: Any) -> str:
    """Return the id of a run: equal inputs give the same one, so a repeated run is found again."""
    digest = hashlib.sha256(canonical_json(decisive)).hexdigest()[:12]
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in encoder)
    return f"{kind}-{name}-{digest}"
