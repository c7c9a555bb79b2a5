"""Calibration intercepts and slopes: how probabilities would have to be moved to fit a cohort.

A model is too sure where a slope is below 1, and not sure enough above; where an intercept is above
0, its class is more frequent than the probabilities say (Cox 1958; Van Calster et al. 2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from embedcache.files.arrays import Codes, Floats
from embedcache.scoring.jackknife import UNBOUNDED, deviations
from embedcache.scoring.probability_units import ProbabilityUnits
from embedcache.scoring.ranking import fewest_patients
from embedcache.scoring.resampling import sums_by_patient
from embedcache.scoring.subject import Score

_LEAST: Final = np.finfo(np.float64).eps  # probabilities below count as this in a logarithm
_MOST_STEPS: Final = 100  # of Newton, and halvings of them
_LEAST_GAIN: Final = 1e-10  # of log-likelihood that a Newton step still promises
_LEAST_INFORMATION: Final = 1e-6  # of a parameter; with less, its estimate lies at infinity
_ROUNDING: Final = 1e-9  # share of the log-likelihood


class _Fit(NamedTuple):
    """Parameters t of softmax(offset + design t), with what each unit says of them.

    Parameters
    ----------
    parameters
        Estimates by maximum likelihood, shape (m,).
    likelihood
        Logarithm of the likelihood.
    gradients
        Gradient of each unit's log-likelihood, shape (n, m).
    informations
        Minus its second derivative, shape (n, m, m).
    """

    parameters: Floats
    likelihood: float
    gradients: Floats
    informations: Floats

    def step(self) -> Floats:
        """Return the Newton step, shape (m,)."""
        information = self.informations.sum(axis=0)
        return np.asarray(np.linalg.pinv(information, hermitian=True) @ self.gradients.sum(axis=0))


def recalibration(units: ProbabilityUnits) -> Iterator[Score]:
    """Yield one slope over all classes, and intercept and slope of each against the rest.

    The slope over all classes is b of softmax(b log p), 1 over the temperature that the cohort
    itself would ask for. Of a class, the intercept is a of logit = a + logit(p), and the slope b of
    logit = a + b logit(p). What has no finite estimate, as where the probabilities separate the
    classes, is left out. So is a score where most units are certain of one class: it would tell
    what stands for a probability of 0.
    """
    p_of_all = units.probability[:, units.columns]
    if not _is_mostly_certain(p_of_all):
        log_p = np.log(np.maximum(p_of_all, _LEAST))
        log_odds = log_p[:, 1:] - log_p[:, :1]
        fit = _fitted(units.truth, log_odds[:, :, None], np.zeros_like(log_odds))
        yield from _scores("calibration_slope", "", fit, units, units.n_patients)
    for number, label in enumerate(units.classes):
        is_in = units.truth == number
        p = p_of_all[:, number]
        if _is_mostly_certain(np.stack([p, 1 - p], axis=1)):
            continue
        logit = np.log(np.maximum(p, _LEAST)) - np.log(np.maximum(1 - p, _LEAST))
        ones, codes = np.ones_like(logit), is_in.astype(np.int64)
        n_holders = fewest_patients(units.patient, is_in)
        fit = _fitted(codes, ones[:, None, None], logit[:, None])
        yield from _scores("calibration_intercept", label, fit, units, n_holders)
        fit = _fitted(codes, np.stack([ones, logit], axis=1)[:, None], np.zeros((len(p), 1)))
        yield from _scores("calibration_slope", label, fit, units, n_holders)


def _is_mostly_certain(p: Floats) -> bool:
    """Return whether most units have no two classes with a probability of `_LEAST` or more.

    Parameters
    ----------
    p
        Probability of each class, shape (n, c).
    """
    return bool(np.mean((p >= _LEAST).sum(axis=1) < 2) > 0.5)


def _fitted(truth: Codes, design: Floats, offset: Floats) -> _Fit | None:
    """Return the estimates; None where they are not finite.

    Parameters
    ----------
    truth
        Number of each unit's class, shape (n,).
    design
        Derivatives of the log odds of each class but the first, shape (n, c - 1, m).
    offset
        Log odds where the parameters are 0, shape (n, c - 1).
    """
    fit = _at(np.zeros(design.shape[2]), truth, design, offset)
    step = fit.step()
    for _ in range(_MOST_STEPS):
        if fit.gradients.sum(axis=0) @ step < _LEAST_GAIN:
            break
        least = fit.likelihood - _ROUNDING * abs(fit.likelihood)
        trial = _at(fit.parameters + step, truth, design, offset)
        if trial.likelihood >= least:
            fit, step = trial, trial.step()
        else:  # Newton overshoots where the curvature falls off
            step = step / 2
    else:
        return None
    least_information = np.linalg.eigvalsh(fit.informations.sum(axis=0))[0]
    return fit if least_information > _LEAST_INFORMATION else None


def _at(parameters: Floats, truth: Codes, design: Floats, offset: Floats) -> _Fit:
    log_odds = np.pad(offset + design @ parameters, [(0, 0), (1, 0)])
    log_odds -= log_odds.max(axis=1, keepdims=True)
    odds = np.exp(log_odds)
    q = odds / odds.sum(axis=1, keepdims=True)
    rows = np.arange(len(truth))
    likelihood = (log_odds[rows, truth] - np.log(odds.sum(axis=1))).sum()
    weighted = q[:, 1:, None] * design
    mean = weighted.sum(axis=1)
    of_truth = np.pad(design, [(0, 0), (1, 0), (0, 0)])[rows, truth]
    squares = np.einsum("njk,njl->nkl", weighted, design)
    informations = squares - mean[:, :, None] * mean[:, None, :]
    return _Fit(parameters, float(likelihood), of_truth - mean, informations)


def _scores(
    metric: str, label: str, fit: _Fit | None, units: ProbabilityUnits, n_holders: int
) -> Iterator[Score]:
    """Yield the last parameter, with what each patient does to it: one Newton step without them."""
    if fit is None:
        return
    m = len(fit.parameters)
    columns = np.hstack([fit.gradients, fit.informations.reshape(-1, m * m)])
    by_patient = [sums_by_patient(c, units.patient, units.n_patients) for c in columns.T]
    gradients, informations = np.split(np.hstack(by_patient), [m], axis=1)
    left = (informations.sum(axis=0) - informations).reshape(-1, m, m)
    moves = -np.einsum("pkl,pl->pk", np.linalg.pinv(left, hermitian=True), gradients)
    value = fit.parameters[-1]
    parts = deviations(value + moves[:, -1])
    yield Score(metric, label, float(value), parts, n_holders, UNBOUNDED)
