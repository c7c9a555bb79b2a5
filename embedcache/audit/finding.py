"""What an audit looks at, and what it finds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Literal

import numpy as np

from embedcache.files.arrays import Codes

Severity = Literal["leak", "warning", "note"]
Verdict = Literal["leaks", "warnings", "clean"]
SEVERITIES: Final[tuple[Severity, ...]] = ("leak", "warning", "note")


@dataclass(frozen=True, slots=True)
class Suspect:
    """One image of a finding.

    Parameters
    ----------
    image_id
        Name of the image.
    twin
        Name of the image that it repeats; None where the finding is of single images.
    similarity
        Least similarity of the two by any encoder, from -1 to 1.
    label, predicted
        Class of the image, and the class that the other images speak for.
    probability
        Out-of-fold probability of the predicted class, from 0 to 1.
    margin
        Lead of that probability over the one of the label, from 0 to 1.
    """

    image_id: str
    twin: str | None = None
    similarity: float | None = None
    label: str | None = None
    predicted: str | None = None
    probability: float | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """One kind of fault.

    Parameters
    ----------
    kind
        Name of the kind; see docs/audit.md.
    severity
        'leak': a score on this split is wrong. 'warning': it may mean something else than it says.
        'note': worth knowing.
    message
        One line: how many, the first of them, the way out.
    suspects
        The images concerned, the gravest first.
    """

    kind: str
    severity: Severity
    message: str
    suspects: tuple[Suspect, ...] = field(default=(), repr=False)

    @property
    def images(self) -> tuple[str, ...]:
        """Names of the images concerned."""
        return tuple(suspect.image_id for suspect in self.suspects)

    def document(self) -> dict[str, Any]:
        """Return the finding as JSON can hold it."""
        return {
            "kind": self.kind,
            "severity": self.severity,
            "message": self.message,
            "n_images": len(self.suspects),
            "images": [asdict(suspect) for suspect in self.suspects],
        }


def verdict(findings: Iterable[AuditFinding]) -> Verdict:
    """Return the gravest of some findings in a word."""
    severities = {finding.severity for finding in findings}
    if "leak" in severities:
        return "leaks"
    return "warnings" if "warning" in severities else "clean"


def verdict_counts(findings: Sequence[AuditFinding]) -> str:
    """Return the verdict with the number of findings by severity: 'leaks (1 leak, 2 notes)'."""
    counts = {word: sum(f.severity == word for f in findings) for word in SEVERITIES}
    parts = [f"{n} {word}{'' if n == 1 else 's'}" for word, n in counts.items() if n]
    shown = f" ({', '.join(parts)})" if parts else ""
    return f"{verdict(findings)}{shown}"


def verdict_line(findings: Sequence[AuditFinding]) -> str:
    """Return the verdict in a line for those who asked for a score: counts, and the gravest."""
    graves = sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity))
    first = f": {graves[0].message}" if verdict(findings) != "clean" else ""
    return f"audit of the split: {verdict_counts(findings)}{first}"


@dataclass(frozen=True, slots=True)
class Scene:
    """The images of a question, as an audit sees them: those that train, then those that test.

    Parameters
    ----------
    image_id, patient_id, label, cohort
        Image, patient, class and cohort of each of the n images.
    key
        SHA-256 of each image's bytes; None where nobody knows it.
    fold
        Number of the fold that tests a training image, -1 for an image that only tests, shape (n,).
    """

    image_id: tuple[str, ...] = field(repr=False)
    patient_id: tuple[str, ...] = field(repr=False)
    label: tuple[str, ...] = field(repr=False)
    cohort: tuple[str, ...] = field(repr=False)
    key: tuple[str | None, ...] = field(repr=False)
    fold: Codes = field(repr=False)

    def __len__(self) -> int:
        return len(self.image_id)

    @property
    def n_train(self) -> int:
        """Number of training images, which come first."""
        return int(np.count_nonzero(self.fold >= 0))

    def take(self, rows: Sequence[int]) -> Scene:
        """Return the images with these numbers, in their order."""
        return Scene(
            image_id=tuple(self.image_id[row] for row in rows),
            patient_id=tuple(self.patient_id[row] for row in rows),
            label=tuple(self.label[row] for row in rows),
            cohort=tuple(self.cohort[row] for row in rows),
            key=tuple(self.key[row] for row in rows),
            fold=self.fold[list(rows)],
        )

    def trains(self, rows: Sequence[int]) -> bool:
        """Tell whether one of these images trains a model."""
        return bool((self.fold[list(rows)] >= 0).any())
