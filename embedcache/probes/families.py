"""The probes by name: what each chooses, from which values, and how it is fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from embedcache.probes import knn, lda, logistic, mlp, prototype, ridge, svm
from embedcache.probes.seam import FitSweep


@dataclass(frozen=True, slots=True)
class ProbeFamily:
    """A kind of probe.

    Parameters
    ----------
    setting
        Name of the setting that is chosen on inner folds.
    grid
        Values to choose from, all above 0, the smoothest first: it wins a tie.
    fit_sweep
        Function that fits probes of this kind.
    about
        Description in one line, with its source.
    """

    setting: str
    grid: tuple[float, ...]
    fit_sweep: FitSweep
    about: str


PROBES: Final[Mapping[str, ProbeFamily]] = MappingProxyType(
    {
        "logistic": ProbeFamily(
            "C",
            logistic.C_GRID,
            logistic.fit_sweep,
            "multinomial logistic regression, L2 penalty (scikit-learn's objective)",
        ),
        "knn": ProbeFamily(
            "k",
            knn.K_GRID,
            knn.fit_sweep,
            "k nearest neighbours by cosine, votes exp(cosine / 0.07) (Wu et al. 2018)",
        ),
        "prototype": ProbeFamily(
            "temperature",
            prototype.TEMPERATURE_GRID,
            prototype.fit_sweep,
            "nearest class mean by cosine (Mensink et al. 2013)",
        ),
        "ridge": ProbeFamily(
            "alpha",
            ridge.ALPHA_GRID,
            ridge.fit_sweep,
            "ridge regression on class indicators (Hoerl and Kennard 1970)",
        ),
        "lda": ProbeFamily(
            "shrinkage",
            lda.SHRINKAGE_GRID,
            lda.fit_sweep,
            "linear discriminant analysis, shrunken covariance (Friedman 1989)",
        ),
        "svm": ProbeFamily(
            "C",
            svm.C_GRID,
            svm.fit_sweep,
            "linear support vector machine, one against the rest (Fan et al. 2008)",
        ),
        "mlp": ProbeFamily(
            "alpha",
            mlp.DECAY_GRID,
            mlp.fit_sweep,
            "network with one hidden layer of 256, Adam, fixed steps (Kingma and Ba 2015)",
        ),
    }
)
