"""How `audit` is asked to look, and what it reports."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

import pyarrow as pa

from embedcache.audit.finding import AuditFinding, Verdict, verdict
from embedcache.audit.probing import Score
from embedcache.data.question import Question
from embedcache.data.tabular import Tabular
from embedcache.errors import RunError

_FINDINGS: Final = pa.schema(
    [
        ("severity", pa.string()),
        ("kind", pa.string()),
        ("n_images", pa.int64()),
        ("message", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class AuditOptions:
    """How to audit.

    Parameters
    ----------
    threshold
        Similarity from which two images are near-duplicates, from -1 to 1; None to measure it.
    show_patients
        Whether messages name patients; else they name an image of theirs.
    """

    threshold: float | None = None
    show_patients: bool = False

    def __post_init__(self) -> None:
        if self.threshold is not None and not -1 <= self.threshold <= 1:
            raise RunError(f"threshold is {self.threshold}; expected a similarity from -1 to 1")


@dataclass(frozen=True, slots=True, repr=False)
class AuditReport(Tabular):
    """What an audit found.

    Parameters
    ----------
    audit_id
        Name of the audit.
    question
        The question whose images were looked at.
    encoders
        Encoders whose embeddings were looked at, as `NAME@FINGERPRINT`.
    n_images, n_patients
        Number of images and patients that were looked at.
    findings
        What is wrong, the gravest first.
    scores
        How well the label and facts of the images are told from each other.
    notes
        What could not be looked at, and the thresholds.
    created
        Time at which it ended, UTC.
    seconds
        Duration.
    """

    audit_id: str
    question: Question
    encoders: tuple[str, ...]
    n_images: int
    n_patients: int
    findings: tuple[AuditFinding, ...]
    scores: tuple[Score, ...]
    notes: tuple[str, ...]
    created: str
    seconds: float

    @property
    def verdict(self) -> Verdict:
        """The gravest finding in a word: 'leaks', 'warnings' or 'clean'."""
        return verdict(self.findings)

    def table(self) -> pa.Table:
        """Return what is wrong, one row a finding, the gravest first."""
        rows = [
            {
                "severity": finding.severity,
                "kind": finding.kind,
                "n_images": len(finding.suspects),
                "message": finding.message,
            }
            for finding in self.findings
        ]
        return pa.Table.from_pylist(rows, schema=_FINDINGS)

    def document(self) -> dict[str, Any]:
        """Return the audit as JSON can hold it."""
        return {
            "audit_id": self.audit_id,
            "created": self.created,
            "verdict": self.verdict,
            "question": self.question.document(),
            "encoders": list(self.encoders),
            "n_images": self.n_images,
            "n_patients": self.n_patients,
            "seconds": self.seconds,
            "findings": [finding.document() for finding in self.findings],
            "scores": [asdict(score) for score in self.scores],
            "notes": list(self.notes),
        }
