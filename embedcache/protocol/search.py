"""The probes of a grid, fitted as far as they are asked for: a search may stop early."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from embedcache.probes.logistic import Sweep
from embedcache.probes.multilabel import MultiLabelPath

# Relative gaps to the optimum: where a search looks around, and where a close choice is decided.
ROUGH_TOL: Final = 1e-4
CHOICE_TOL: Final = 1e-8
# Gaps of values between which a choice is close, and how close that is: the number of images of the
# rarest class that might be called otherwise when going on from the last gap, with room to spare.
REFINEMENTS: Final = ((1e-6, 5), (CHOICE_TOL, 2))
_STEP: Final = 2  # values of C


class Search(Protocol):
    """The probes of several training sets, for the values of one grid.

    Parameters
    ----------
    turns
        Places of the grid that are fitted together, in the order in which to ask for them.
    is_exact
        Whether there is nothing to refine.
    """

    turns: list[NDArray[np.intp]]
    is_exact: bool

    def fit(self, places: NDArray[np.intp]) -> Sequence[Any]:
        """Return for each training set the path of these places of the grid."""

    def refine(self, places: Sequence[NDArray[np.intp]], tol: float) -> Sequence[Any]:
        """Return for each training set the path of places of its own, solved further.

        All of them have been fitted before. `tol` is the relative gap to the optimum.
        """


class WholeGrid:
    """Probes that fit all values in one go, and exactly.

    Parameters
    ----------
    paths
        Path of each training set, of the whole grid.
    n_values
        Number of values of the grid.
    """

    is_exact = True

    def __init__(self, paths: Sequence[Any], n_values: int) -> None:
        self.turns: list[NDArray[np.intp]] = [np.arange(n_values)]
        self._paths = paths

    def fit(self, places: NDArray[np.intp]) -> Sequence[Any]:
        """Return the paths; `places` are all that there are."""
        del places
        return self._paths

    def refine(self, places: Sequence[NDArray[np.intp]], tol: float) -> Sequence[Any]:
        """Return the paths, which are exact already; never asked for."""
        del places, tol
        return self._paths


class LogisticSearch:
    """Logistic regressions, a few values of C at a time.

    Parameters
    ----------
    sweep
        Training sets and values of C.
    """

    is_exact = False

    def __init__(self, sweep: Sweep) -> None:
        self._sweep, self.turns = sweep, sweep.turns(_STEP)

    def fit(self, places: NDArray[np.intp]) -> Sequence[Any]:
        """Return the paths of the next values."""
        return self._sweep.solve_all(places, ROUGH_TOL)

    def refine(self, places: Sequence[NDArray[np.intp]], tol: float) -> Sequence[Any]:
        """Return the paths of values that were fitted before."""
        return self._sweep.solve(places, tol)


class MultilabelSearch:
    """A search for each label, all of them in step.

    Parameters
    ----------
    searches
        Search of each label, with the classes no and yes.
    """

    is_exact = False

    def __init__(self, searches: Sequence[LogisticSearch]) -> None:
        self._searches, self.turns = searches, searches[0].turns

    def fit(self, places: NDArray[np.intp]) -> Sequence[Any]:
        """Return the paths of the next values."""
        return _of_labels([search.fit(places) for search in self._searches])

    def refine(self, places: Sequence[NDArray[np.intp]], tol: float) -> Sequence[Any]:
        """Return the paths of values that were fitted before."""
        return _of_labels([search.refine(places, tol) for search in self._searches])


def _of_labels(by_label: Sequence[Sequence[Any]]) -> list[MultiLabelPath]:
    return [MultiLabelPath(paths) for paths in zip(*by_label, strict=True)]
