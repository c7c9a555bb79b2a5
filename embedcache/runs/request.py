"""What makes a run the run it is: a question, a method, an encoder, and the data they meet."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.question import Question
from embedcache.files.durable import canonical_json
from embedcache.runs.methods import Method

Kind = Literal["probe", "control", "curve", "zeroshot", "finetune"]
# Runs with an answer for each image that are models, not controls or curves.
MODEL_KINDS: Final = frozenset({"probe", "zeroshot", "finetune"})


@dataclass(frozen=True, slots=True)
class RunData:
    """Digests of what a run is applied to.

    Parameters
    ----------
    train
        Digest of the training cohort's rows; None where nothing is trained.
    external
        Digests of each external cohort's rows.
    folds_id
        Name of the table of folds; None where there are none.
    manifest
        Content digest of the remembered manifest. It plays no part in the run's id: a manifest
        with further images asks the same question of the same rows.
    pictures
        Digest of the pictures that a training reads; None elsewhere.
    """

    train: str | None
    external: tuple[str, ...]
    folds_id: str | None
    manifest: str
    pictures: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the digests as JSON can hold them; what does not apply is left out."""
        values = {
            "folds_id": self.folds_id,
            "train": self.train,
            "external": list(self.external),
            "pictures": self.pictures,
            "manifest": self.manifest,
        }
        return {name: value for name, value in values.items() if value is not None}

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> RunData:
        """Return the digests in a document."""
        return cls(
            train=document.get("train"),
            external=tuple(document.get("external", ())),
            folds_id=document.get("folds_id"),
            manifest=str(document.get("manifest", "")),
            pictures=document.get("pictures"),
        )


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run that is wanted: all that decides its result.

    Parameters
    ----------
    kind
        'probe', 'control', 'curve', 'zeroshot' or 'finetune'; in records of other releases,
        perhaps another word.
    encoder, fingerprint
        Name of the encoder, and the fingerprint of its rows.
    question
        The question with nothing left open: cohorts are named, the class map is read.
    method
        What is done to answer it.
    data
        Digests of what it is applied to.
    constants
        Further numbers and names that decide the result, such as the protocol's version, the
        values to choose from and tolerances.
    n_resamples
        Number of resamples of patients behind the interval of the ECE.
    versions
        Versions of this project and of the libraries that decide the result, by distribution.
    """

    kind: str
    encoder: str
    fingerprint: str
    question: Question
    method: Method
    data: RunData
    constants: Mapping[str, Any] = field(default_factory=dict)
    n_resamples: int = 10_000
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def run_id(self) -> str:
        """Name of the run: equal requests have the same one, so a repeated run is found again."""
        data = {key: value for key, value in self.data.document().items() if key != "manifest"}
        # Kind and encoder are in the name itself; every entry here decides a number.
        decisive = [
            self.fingerprint,
            self.question.document(),
            self.method.document(),
            data,
            dict(self.constants),
            self.n_resamples,
            dict(self.versions),
        ]
        digest = hashlib.sha256(canonical_json(decisive)).hexdigest()[:12]
        # The name is one of a folder, and names of encoders have colons and slashes.
        name = "".join(c if c.isalnum() or c in "._-" else "-" for c in self.encoder)
        return f"{self.kind}-{name}-{digest}"


def rows_digest(rows: LabelledEmbeddings) -> str:
    """Return the digest of what a method is given of a cohort: vectors, patients, labels."""
    names = [rows.image_id, rows.patient_id, rows.cohort, rows.label]
    return hashlib.sha256(canonical_json(names) + rows.X.tobytes()).hexdigest()
