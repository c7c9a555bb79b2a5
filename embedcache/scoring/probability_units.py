"""What a score of probabilities of classes needs to know of the units that it is of."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats


class ProbabilityUnits(Protocol):
    """Units with a probability of each class; see `ClassUnits`."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The c classes that occur among the labels."""

    @property
    def n_patients(self) -> int:
        """Number of patients."""

    @property
    def patient(self) -> NDArray[np.intp]:
        """Number of each unit's patient, shape (n,)."""

    @property
    def truth(self) -> NDArray[np.int64]:
        """Number of each unit's class, shape (n,)."""

    @property
    def predicted(self) -> NDArray[np.int64]:
        """Number of the most probable class, shape (n,)."""

    @property
    def probability(self) -> Floats:
        """Probability of every class of the model, shape (n, k)."""

    @property
    def columns(self) -> NDArray[np.int64]:
        """Column of `probability` of each class, shape (c,)."""
