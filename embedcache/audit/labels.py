"""Labels that the other images contradict: confident learning, on two splits that must agree.

An image is a suspect where its probability of another class is at least what images of that class
get on average, and its own class does not get as much (Northcutt, Jiang and Chuang 2021, Journal
of Artificial Intelligence Research 70, doi:10.1613/jair.1.12125, section 3.1). By patient alone,
whole patients who look unlike the others would be listed; so a probe that has seen other frames of
the same patient must say the same.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from embedcache.audit.finding import AuditFinding, Suspect
from embedcache.data.predictions import Predictions
from embedcache.files.arrays import Codes, Floats


def likely_label_errors(by_patient: Predictions, by_image: Predictions) -> list[AuditFinding]:
    """Return the images whose label is contradicted on folds of patients and on folds of images.

    Parameters
    ----------
    by_patient, by_image
        Predictions of the same images, on folds of patients and on folds of images.
    """
    y = by_patient.codes()
    first, second = (confident_class(part.probability, y) for part in (by_patient, by_image))
    # What a single fold has was never trained on when that fold was tested.
    n_folds = np.array([len(set(by_patient.fold[y == code])) for code in range(y.max() + 1)])
    judged = np.flatnonzero(n_folds > 1)
    is_judged = np.isin(y, judged) & np.isin(first, judged)
    contradicted = np.flatnonzero((first == second) & (first != y) & is_judged)
    if not contradicted.size:
        return []
    mean = (by_patient.probability + by_image.probability) / 2
    predicted = first[contradicted]
    probability = mean[contradicted, predicted]
    margin = probability - mean[contradicted, y[contradicted]]
    suspects = tuple(
        Suspect(
            by_patient.image_id[contradicted[place]],
            label=by_patient.label[contradicted[place]],
            predicted=by_patient.classes[predicted[place]],
            probability=round(float(probability[place]), 4),
            margin=round(float(margin[place]), 4),
        )
        for place in np.argsort(-margin, kind="stable")
    )
    worst = suspects[0]
    message = (
        f"{len(suspects)} labels are contradicted by the other images, first '{worst.image_id}': "
        f"'{worst.label}', which looks like '{worst.predicted}'; look at them, and correct what is "
        "wrong"
    )
    return [AuditFinding("label-error", "note", message, suspects)]


def confident_class(probability: Floats, y: Codes) -> Codes:
    """Return the class that each image confidently belongs to, -1 where there is none, shape (n,).

    Parameters
    ----------
    probability
        Out-of-fold probability of each class, shape (n, classes).
    y
        Label of each image, from 0, shape (n,).
    """
    n_classes = probability.shape[1]
    counts = np.bincount(y, minlength=n_classes)
    own = np.bincount(y, weights=probability[np.arange(len(y)), y], minlength=n_classes)
    usual: NDArray[np.float64] = np.where(counts > 0, own / np.maximum(counts, 1), np.inf)
    confident = np.where(probability >= usual, probability, -1.0)
    best = confident.argmax(axis=1)
    return np.where(confident.max(axis=1) < 0, -1, best)
