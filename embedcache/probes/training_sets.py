"""Training sets that share rows: their cells, their standardisation, their class weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import AnyFloats, Floats
from embedcache.probes.scaling import Scaler

ClassWeight = Mapping[int, float] | str | None

_SMALL_CELLS: Final = 1 << 20  # of a matrix that is worked on in float64 from the start
# The most by which a set's own scale may magnify what float32 rounds off on that of all rows.
_MOST_STRETCH: Final = 1e5
_CHUNK_ROWS: Final = 2048


@dataclass(frozen=True, slots=True)
class TrainingSets:
    """Rows, sorted by cell and class, with the scaling and weights of each training set.

    Parameters
    ----------
    X
        Features standardised over all rows, the last column 1; shape (n, d + 1), float32, or
        float64 where small.
    y
        Class of each row, 0 to k - 1, shape (n,).
    weight
        Weight of each row, positive, shape (n,).
    cell
        Number of each row's cell, ascending, shape (n,).
    member
        Whether a set holds a cell, shape (sets, cells).
    class_weight
        Factor of each set for the weight of a class, shape (sets, k); times the rows' weights it
        sums to 1 over each set.
    total
        Sum of weights of each set before that division, shape (sets,).
    prior
        Weighted share of each class in each set, shape (sets, k).
    scalers
        Mean and deviation of each set's rows as they came.
    shift, stretch
        Mean and 1 / scale of each set in the columns of `X`, shape (sets, d).
    """

    X: AnyFloats
    y: NDArray[np.int64]
    weight: Floats
    cell: NDArray[np.int64]
    member: NDArray[np.bool_]
    class_weight: Floats
    total: Floats
    prior: Floats
    scalers: tuple[Scaler, ...]
    shift: Floats
    stretch: Floats


def training_sets(
    X: AnyFloats,
    y: NDArray[np.int64],
    weight: Floats,
    sets: Sequence[NDArray[np.intp]],
    class_weight: ClassWeight,
    *,
    standardize: bool,
) -> TrainingSets:
    """Sort the rows of training sets, all of which hold the same classes.

    Parameters
    ----------
    X, y, weight
        Features, class and weight of all rows; classes from 0 to n_classes - 1.
    sets
        Rows of each training set.
    class_weight
        Weight of each class, 'balanced' by set, or None.
    standardize
        Whether features are divided by their deviation, or just centred.
    """
    trained, cell, member = _cells(len(y), sets)
    classes, code = np.unique(y[trained], return_inverse=True)
    order = np.lexsort((code, cell))
    rows, code, cell = trained[order], code[order], cell[order]
    scalers, middle = _scalers(_Moments.of(X, rows, weight[rows], cell), member)
    if not standardize:
        *scalers, middle = (replace(s, scale=np.sign(s.scale)) for s in (*scalers, middle))
    shift = np.stack([(s.mean - middle.mean) * middle.inverse for s in scalers])
    stretch = np.stack([s.inverse * middle.scale for s in scalers])
    by_cell = np.zeros((member.shape[1], len(classes)))
    np.add.at(by_cell, (cell, code), weight[rows])
    by_class = member @ by_cell  # (sets, k)
    factor = np.stack([_factors(mass, classes, class_weight) for mass in by_class])
    total = (by_class * factor).sum(axis=1)
    exact = is_small(len(rows), X.shape[1]) or stretch.max() > _MOST_STRETCH
    return TrainingSets(
        X=_standardised(X, rows, middle, np.float64 if exact else np.float32),
        y=code,
        weight=weight[rows],
        cell=cell,
        member=member,
        class_weight=factor / total[:, None],
        total=total,
        prior=by_class * factor / total[:, None],
        scalers=tuple(scalers),
        shift=shift,
        stretch=stretch,
    )


def is_small(n_rows: int, n_features: int) -> bool:
    """Return whether a matrix is worked on in float64 from the start, which takes little time."""
    return n_rows * n_features < _SMALL_CELLS


def _cells(
    n_rows: int, sets: Sequence[NDArray[np.intp]]
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.bool_]]:
    """Return the rows of any set, the cell of each of them, and which cells a set holds.

    A cell is the rows that the same sets hold: what is summed over cells is read once for all sets.
    """
    holds = np.zeros((n_rows, len(sets)), np.bool_)
    for number, rows in enumerate(sets):
        holds[rows, number] = True
    trained = np.flatnonzero(holds.any(axis=1))
    patterns, cell = np.unique(np.packbits(holds[trained], axis=1), axis=0, return_inverse=True)
    member = np.unpackbits(patterns, axis=1, count=len(sets)).astype(np.bool_).T
    return trained, cell, member


def _scalers(moments: _Moments, member: NDArray[np.bool_]) -> tuple[list[Scaler], Scaler]:
    """Return the scaler of each set's rows, and that of the rows of all sets."""
    scalers = [moments.over(cells[moments.cell]) for cells in member]
    return scalers, moments.over(np.ones(len(moments.cell), np.bool_))


def _factors(mass: Floats, classes: NDArray[np.int64], class_weight: ClassWeight) -> Floats:
    """Return the weight of each class, given its summed row weights."""
    if class_weight is None:
        return np.ones(len(mass))
    if isinstance(class_weight, str):
        return np.asarray(mass.sum() / (len(mass) * mass))
    return np.array([class_weight.get(code, 1.0) for code in classes.tolist()])


def _standardised(
    X: AnyFloats, rows: NDArray[np.intp], scaler: Scaler, dtype: type[np.floating[Any]]
) -> AnyFloats:
    out = np.ones((len(rows), X.shape[1] + 1), dtype)
    for first in range(0, len(rows), _CHUNK_ROWS):
        chunk = slice(first, first + _CHUNK_ROWS)
        out[chunk, :-1] = scaler.apply(X[rows[chunk]])
    return out


@dataclass(frozen=True, slots=True)
class _Moments:
    """Mean and squared deviations of chunks of rows, to be merged into those of any set.

    Chan, Golub and LeVeque 1983, The American Statistician 37: no digits are lost to a large mean.
    """

    cell: NDArray[np.int64]  # (chunks,)
    weight: Floats
    mean: Floats  # (chunks, d)
    squares: Floats  # (chunks, d)
    dtype: np.dtype[Any]  # of the rows

    @classmethod
    def of(
        cls, X: AnyFloats, rows: NDArray[np.intp], weight: Floats, cell: NDArray[np.int64]
    ) -> _Moments:
        edges = np.unique(np.r_[np.flatnonzero(np.diff(cell, prepend=-1)), len(rows)])
        starts = [at for a, b in pairwise(edges.tolist()) for at in range(a, b, _CHUNK_ROWS)]
        parts = []
        for start, stop in zip(starts, [*starts[1:], len(rows)], strict=True):
            block, share = X[rows[start:stop]].astype(np.float64), weight[start:stop]
            mean = share @ block / share.sum()
            block -= mean
            parts.append((share.sum(), mean, share @ (block * block)))
        total, means, squares = map(np.array, zip(*parts, strict=True))
        return cls(cell[starts], total, means, squares, X.dtype)

    def over(self, chunks: NDArray[np.bool_]) -> Scaler:
        """Return the scaler of the rows of these chunks together."""
        weight, means = self.weight[chunks], self.mean[chunks]
        mean = weight @ means / weight.sum()
        spread = self.squares[chunks].sum(axis=0) + weight @ (means - mean) ** 2
        return Scaler.from_moments(mean, spread / weight.sum(), self.dtype)
