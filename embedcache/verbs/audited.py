"""Runs with what an audit of the table of images says of the split that they were scored on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedcache.audit.finding import AuditFinding, Scene, verdict
from embedcache.audit.identical import cheap_findings
from embedcache.data.predictions import Answers
from embedcache.runs.outcome import RunOutcomes
from embedcache.verbs.repeats import RepeatedScore, repeated_scores


@dataclass(frozen=True, slots=True, repr=False)
class AuditedRuns(RunOutcomes):
    """The runs of a command, and what is wrong with their split.

    Parameters
    ----------
    runs
        Runs of each encoder, its repeats by ascending seed.
    findings
        Faults that the table of images tells; see docs/audit.md.
    """

    findings: tuple[AuditFinding, ...] = ()

    @property
    def scores(self) -> tuple[RepeatedScore, ...]:
        """Scores that the runs are judged by, over the repeats of each encoder and method."""
        return tuple(repeated_scores(self.runs))

    @property
    def leaks(self) -> bool:
        """Whether a score of these runs is wrong: an image or a patient is on both sides."""
        return verdict(self.findings) == "leaks"


def audit_document(findings: Sequence[AuditFinding]) -> dict[str, Any]:
    """Return verdict and findings as JSON can hold them."""
    return {
        "verdict": verdict(findings),
        "findings": [finding.document() for finding in findings],
    }


def findings_of_answers(
    cohorts: Sequence[Answers], keys: Mapping[str, str | None]
) -> list[AuditFinding]:
    """Return the faults of the split that stored answers were scored on.

    Parameters
    ----------
    cohorts
        Answers of one run to each cohort.
    keys
        SHA-256 of each image, by its name.
    """
    trained = [answers for answers in cohorts if answers.role == "in-domain"]
    parts = [*trained, *(answers for answers in cohorts if answers.role == "external")]
    image_id = tuple(image for part in parts for image in part.image_id)
    scene = Scene(
        image_id=image_id,
        patient_id=tuple(patient for part in parts for patient in part.patient_id),
        label=tuple(str(target) for part in parts for target in part.targets),
        cohort=tuple(cohort for part in parts for cohort in part.cohort),
        key=tuple(keys.get(image) for image in image_id),
        fold=np.concatenate([part.fold for part in parts]),
    )
    # Rare classes are said by the folds' own notes, which a record has.
    return cheap_findings(scene, 0, "classification")
