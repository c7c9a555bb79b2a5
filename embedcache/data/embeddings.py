"""Embeddings with the labels of their images: the rows that a probe is fitted on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.data.pseudonyms import Pseudonyms
from embedcache.errors import LeakageError, RunError

# Query of the patients that stand in several cohorts.
IN_TWO_COHORTS: Final = (
    "SELECT patient_id FROM images GROUP BY patient_id HAVING count(DISTINCT cohort) > 1"
)


@dataclass(frozen=True, slots=True, repr=False)
class LabelledEmbeddings:
    """One encoder's rows for some images, in the order of the manifest.

    Parameters
    ----------
    encoder, fingerprint
        Name and fingerprint of the encoder.
    X
        Embeddings, one row an image, shape (n, dim), float32, finite.
    image_id, patient_id, cohort
        Image, patient and cohort of each row.
    label
        Label of each row; '' where the image has none.
    n_failed
        Number of images left out because they could not be encoded.
    """

    encoder: str
    fingerprint: str
    X: NDArray[np.float32] = field(repr=False)
    image_id: tuple[str, ...] = field(repr=False)
    patient_id: tuple[str, ...] = field(repr=False)
    cohort: tuple[str, ...] = field(repr=False)
    label: tuple[str, ...] = field(repr=False)
    n_failed: int = 0

    def __post_init__(self) -> None:
        columns = (self.image_id, self.patient_id, self.cohort, self.label)
        if self.X.ndim != 2 or any(len(column) != len(self.X) for column in columns):
            raise ValueError(f"X {self.X.shape} and columns {[*map(len, columns)]} do not match")
        bad = np.flatnonzero(~np.isfinite(self.X).all(axis=1))
        if bad.size:
            raise RunError(
                f"embedding of image '{self.image_id[bad[0]]}' by '{self.encoder}' holds NaN or "
                f"infinity ({bad.size} of {len(self.X)} rows do); run `embedcache verify`"
            )

    def __repr__(self) -> str:
        return (
            f"LabelledEmbeddings(encoder='{self.encoder}', fingerprint='{self.fingerprint[:12]}', "
            f"X={self.X.shape}, n_patients={self.n_patients}, n_failed={self.n_failed})"
        )

    def __len__(self) -> int:
        return len(self.X)

    @property
    def n_patients(self) -> int:
        """Number of distinct patients."""
        return len(set(self.patient_id))

    def pseudonymised(self, pseudonyms: Pseudonyms) -> LabelledEmbeddings:
        """Return the same rows with pseudonyms of patients and images."""
        return replace(
            self,
            image_id=pseudonyms.of("image_id", self.image_id),
            patient_id=pseudonyms.of("patient_id", self.patient_id),
        )

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> LabelledEmbeddings:
        """Return the rows with these numbers, in their order."""
        return LabelledEmbeddings(
            encoder=self.encoder,
            fingerprint=self.fingerprint,
            X=self.X[rows],
            image_id=tuple(self.image_id[row] for row in rows),
            patient_id=tuple(self.patient_id[row] for row in rows),
            cohort=tuple(self.cohort[row] for row in rows),
            label=tuple(self.label[row] for row in rows),
        )


def check_cohorts(train: LabelledEmbeddings, external: Sequence[LabelledEmbeddings]) -> None:
    """Check that a training cohort is labelled and shares no patient with another one.

    Raises
    ------
    LeakageError
        A patient of the training cohort stands in an external one.
    RunError
        A training image without a label.
    """
    if "" in train.label:
        raise RunError("training images without a label; leave them out before fitting")
    patients = set(train.patient_id)
    for cohort in external:
        shared = patients & set(cohort.patient_id)
        if shared:  # counted, not named: messages end up in logs
            raise LeakageError(
                f"{len(shared)} patients are in the training cohort and in external cohort "
                f"'{cohort.cohort[0]}'; give patients ids that are unique over cohorts, or leave "
                f'them out with --where; embedcache sql "{IN_TWO_COHORTS}" lists them'
            )
