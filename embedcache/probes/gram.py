"""Standardised training sets and their Gram matrices, shared where training sets overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from embedcache.files.arrays import Floats
from embedcache.probes.scaling import Scaler
from embedcache.probes.seam import Embeddings

Rows = Sequence[NDArray[np.intp]]


def standardised(X: Embeddings, training: Rows) -> Iterator[tuple[Scaler, Floats, Floats | None]]:
    """Yield for each training set its scaler, its rows Z standardised by it, and Z'Z.

    The Gram matrix Z'Z, shape (dim, dim), is None for a set of no more rows than features: the
    row space is the smaller one there.

    Raises
    ------
    RunError
        A training set without rows.
    """
    # Measured from near every set's mean: what is far from it would drown in its own square.
    origin = np.median(X, axis=0).astype(np.float64)
    grams = _grams(X, origin, [rows for rows in training if len(rows) > X.shape[1]])
    for rows in training:
        scaler = Scaler.of(X[rows])
        Z, gram = scaler.apply(X[rows]), None
        if len(rows) > X.shape[1]:
            shift = scaler.mean - origin
            gram = next(grams) - len(rows) * np.outer(shift, shift)
            gram *= np.outer(scaler.inverse, scaler.inverse)
        yield scaler, Z, gram


def _grams(X: Embeddings, origin: Floats, training: Rows) -> Iterator[Floats]:
    """Yield each training set's Gram matrix about the origin.

    Rows that stand in the same training sets form a part: K folds are the parts of all 'all but
    fold i' and 'all but i and j', and no product is formed twice. Parts are added, never taken
    from a total: what is left of a difference is noise where the removed part was large.
    """
    if not training:
        return
    times = np.stack([np.bincount(rows, minlength=len(X)) for rows in training], axis=1)
    patterns, part = np.unique(times, axis=0, return_inverse=True)
    trained = np.flatnonzero(patterns.any(axis=1))
    if len(trained) > len(
        training
    ):  # parts would be more work, and memory, than the sets themselves
        yield from (_gram(X[rows] - origin) for rows in training)
        return
    parts = np.stack([_gram(X[part == number] - origin) for number in trained])
    for counts in patterns[trained].T:
        yield np.tensordot(counts.astype(np.float64), parts, axes=1)


def _gram(Z: Floats) -> Floats:
    return np.asarray(Z.T @ Z)


def spectrum(Z: Floats, gram: Floats | None) -> tuple[Floats, Floats]:
    """Return eigenvalues and eigenvectors of Z'Z.

    Parameters
    ----------
    Z
        Standardised rows, shape (n, dim).
    gram
        Z'Z, shape (dim, dim); None to decompose the rows themselves.

    Returns
    -------
    Eigenvalues, shape (r,), not negative, and eigenvectors in columns, shape (dim, r): all of them
    with a Gram matrix, without it the min(n, dim) that the rows span.
    """
    if gram is None:
        _, singular, right = np.linalg.svd(Z, full_matrices=False)
        return np.square(singular), right.T
    values, vectors = np.linalg.eigh(gram)
    return np.maximum(values, 0.0), vectors
