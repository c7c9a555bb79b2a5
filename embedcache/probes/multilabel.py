"""Several labels an image: an independent yes-or-no probe for each, of any family."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.probes.seam import Embeddings, FitSweep, ProbePath, Problems


@dataclass(frozen=True, slots=True)
class MultiLabelPath:
    """The probes of one training set: a path for each label.

    Parameters
    ----------
    paths
        Path of each label, with the classes no and yes.
    """

    paths: tuple[ProbePath, ...]

    def probability(self, X: Embeddings) -> Floats:
        """Return the probability by value, row and label; labels need not sum to 1."""
        return np.stack([path.probability(X)[:, :, 1] for path in self.paths], axis=2)


def fit_multilabel(
    fit_sweep: FitSweep, X: Embeddings, Y: NDArray[np.bool_], problems: Problems
) -> list[MultiLabelPath]:
    """Fit one probe for each label, training set and value of the setting.

    A label that no training image has, or every one, has probability 0 or 1 for any image.

    Parameters
    ----------
    fit_sweep
        Function that fits probes of the family.
    X
        Embeddings, finite, shape (n, dim).
    Y
        Whether each image has each label, shape (n, n_labels), at least one label.
    problems
        Training rows, and the values of the setting; see `seam.Problems`.

    Returns
    -------
    For each problem the path of its probes, in the order of its values.

    Raises
    ------
    RunError
        A training set without rows.
    """
    by_label = [fit_sweep(X, label.astype(np.int64), 2, problems) for label in Y.T]
    return [MultiLabelPath(paths) for paths in zip(*by_label, strict=True)]
