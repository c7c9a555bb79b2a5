"""A small neural network on embeddings: one hidden layer of 256, by scikit-learn's MLPClassifier.

It trains for a fixed number of steps. scikit-learn's early stopping holds out images at random,
and so frames of the patients that it trains on: the weight decay is what is chosen instead, on the
protocol's own patient folds.

References
----------
Kingma and Ba 2015, arXiv 1412.6980: Adam, with its default step.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier

from embedcache.files.arrays import Floats
from embedcache.probes.scaling import Scaler
from embedcache.probes.seam import Embeddings, Problems

DECAY_GRID: Final = (100.0, 10.0, 1.0, 0.1)
HIDDEN: Final = 256
STEPS: Final = 1000
BATCH: Final = 200

# (dim, HIDDEN), (HIDDEN,), (HIDDEN, n_classes), (n_classes,)
_Network: TypeAlias = tuple[Floats, Floats, Floats, Floats]


@dataclass(frozen=True, slots=True)
class MlpPath:
    """The networks of one training set, one for each weight decay.

    Parameters
    ----------
    scaler
        Mean and deviation of the training set.
    networks
        Weights and biases of the two layers of each network, the last bias minus infinity for a
        class not trained on.
    """

    scaler: Scaler
    networks: tuple[_Network, ...] = field(repr=False)

    def probability(self, X: Embeddings) -> Floats:
        """Return the softmax of the last layer by weight decay, row and class."""
        Z = self.scaler.apply(X)
        return np.stack([softmax(_forward(Z, network), axis=1) for network in self.networks])


def _forward(Z: Floats, network: _Network) -> Floats:
    inner, inner_bias, outer, outer_bias = network
    return np.asarray(np.maximum(Z @ inner + inner_bias, 0.0) @ outer + outer_bias)


def fit_sweep(
    X: Embeddings, y: NDArray[np.int64], n_classes: int, problems: Problems, *, seed: int = 0
) -> list[MlpPath]:
    """Train one network for each training set and each weight decay; see `seam.FitSweep`.

    Parameters
    ----------
    X, y, n_classes
        Embeddings, classes and their number; see `seam.FitSweep`.
    problems
        Training rows, and the values of scikit-learn's alpha.
    seed
        Seed of the first weights and of the order of the batches.
    """
    fitted = []
    for training, decays in problems:
        rows = training[_order(X[training], y[training])]
        scaler = Scaler.of(X[rows])
        Z = scaler.apply(X[rows]).astype(np.float32)
        networks = tuple(_fit(Z, y[rows], n_classes, decay, seed) for decay in decays)
        fitted.append(MlpPath(scaler, networks))
    return fitted


def _order(X: Embeddings, y: NDArray[np.int64]) -> NDArray[np.intp]:
    """Return an order that depends on the rows alone, so that batches do not on theirs."""
    whole = np.column_stack([X, y.astype(np.float32)])
    return np.argsort(whole.view(f"V{whole.itemsize * whole.shape[1]}").ravel())


def _fit(Z: Embeddings, y: NDArray[np.int64], n_classes: int, decay: float, seed: int) -> _Network:
    present = np.unique(y)
    outer, bias = np.zeros((HIDDEN, n_classes)), np.full(n_classes, -np.inf)
    bias[present] = 0.0
    if len(present) == 1:  # which scikit-learn refuses
        return np.zeros((Z.shape[1], HIDDEN)), np.zeros(HIDDEN), outer, bias
    batch = min(BATCH, len(Z))
    epochs = math.ceil(STEPS / math.ceil(len(Z) / batch))
    model = MLPClassifier(
        (HIDDEN,),
        alpha=decay,
        batch_size=batch,
        max_iter=epochs,
        n_iter_no_change=epochs,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # that all steps were used
        model.fit(Z, y)
    # Of two classes scikit-learn keeps the second one's log-odds only.
    scored = present[-1:] if len(present) == 2 else present
    outer[:, scored], bias[scored] = model.coefs_[1], model.intercepts_[1]
    inner, inner_bias = (part[0].astype(np.float64) for part in (model.coefs_, model.intercepts_))
    return inner, inner_bias, outer, bias
