"""Near-duplicates of other patients: images that are as alike as frames of one patient.

An image is held against its nearest image of another patient, relative to how near a third patient
comes: the third-nearest other patient stands for what chance gives just there, in a crowded part of
the embeddings as in an empty one. How much nearer frames of one patient are to each other than
that is measured on the same images, and sets the threshold. Every encoder must agree, and a hash
of the picture, which knows nothing of what encoders were trained for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedcache.audit.finding import AuditFinding, Scene, Severity, Suspect
from embedcache.audit.pictures import PictureFacts, hash_distance
from embedcache.files.arrays import Codes, Rows

MOST_BITS: Final = (4, 8)  # of 64 that hashes of one picture differ in; by one encoder, by several
# Bounds of the distance, relative to that of the third-nearest patient; the first also holds where
# too few patients have two images of a class to measure it.
RATIOS: Final = (0.05, 0.5)
_FEWEST_PAIRS: Final = 0.1  # share of images with a neighbour of their own patient and class
_REFERENCE: Final = 3  # patients; those that are duplicates themselves must not be the reference
_BLOCK_CELLS: Final = 1 << 23  # similarities held at a time
_LEAST: Final = 1e-6  # distance that float32 still tells from none

Similarities = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The nearest images of each image by one encoder; similarities are correlations, -1 to 1.

    Parameters
    ----------
    Z
        Centred rows of length 1, shape (n, dim).
    other
        Number of the nearest image of another patient, shape (n,).
    own
        Similarity to the nearest other image of the same patient and class, NaN without one,
        shape (n,).
    reference
        Similarity to the third-nearest other patient, shape (n,).
    """

    Z: Similarities
    other: Codes
    own: Similarities
    reference: Similarities


@dataclass(frozen=True, slots=True)
class Threshold:
    """When two images are as alike as frames of one patient, by one encoder.

    Parameters
    ----------
    similarity
        Least similarity.
    ratio
        Most distance, relative to the distance of the third-nearest patient; infinite where the
        similarity was given.
    n_pairs
        Number of images whose nearest image of their own patient and class was measured; 0 where
        these were too few.
    """

    similarity: float
    ratio: float
    n_pairs: int

    def __str__(self) -> str:
        if np.isinf(self.ratio):
            return f"similarity from {self.similarity:.4f}, as given"
        if self.n_pairs:
            measured = f"measured on {self.n_pairs} images with another of their patient and class"
        else:
            measured = "too few patients have two images of a class to measure it"
        return (
            f"similarity from {self.similarity:.4f} and distance up to {self.ratio:.2f} of the "
            f"third-nearest patient's, {measured}"
        )


def neighbours(X: Rows, patient: Codes, label: Codes) -> Neighbours:
    """Return the nearest images of each image.

    Parameters
    ----------
    X
        Embeddings, shape (n, dim). Each loses its own mean and length, then the mean of each
        feature: brightness and contrast, where features are pixels, and what all images share tell
        nothing.
    patient, label
        Numbers of each image's patient and class, shape (n,).
    """
    order = np.lexsort((label, patient))  # patients lie together, and in them classes
    Z, who = _centred(X)[order], patient[order]
    parts, of_part = _starts(np.stack([who, label[order]], axis=1))
    patients, of_patient = _starts(who[:, None])
    first_part = of_part[patients]  # of each patient
    ends = np.append(patients[1:], len(Z))
    rank = min(_REFERENCE, max(1, len(patients) - 1))
    other = np.zeros(len(Z), np.int64)
    own, reference = np.empty(len(Z), np.float32), np.empty(len(Z), np.float32)
    step = max(1, _BLOCK_CELLS // len(Z))
    for first in range(0, len(Z), step):
        rows = np.arange(first, min(first + step, len(Z)))
        place = np.arange(len(rows))
        similarity = Z[rows] @ Z.T
        similarity[place, rows] = -np.inf
        by_part = np.maximum.reduceat(similarity, parts, axis=1)
        own[rows] = by_part[place, of_part[rows]]
        by_patient = np.maximum.reduceat(by_part, first_part, axis=1)
        by_patient[place, of_patient[rows]] = -np.inf
        reference[rows] = np.partition(by_patient, -rank, axis=1)[:, -rank]
        for number, patient_number in enumerate(of_patient[rows]):
            similarity[number, patients[patient_number] : ends[patient_number]] = -np.inf
        other[rows] = order[similarity.argmax(axis=1)]
    back = np.argsort(order)
    own[~np.isfinite(own)] = np.nan
    return Neighbours(Z[back], other[back], own[back], reference[back])


def _starts(groups: Codes) -> tuple[Codes, Codes]:
    """Return the first row of each run of equal rows, and the number of each row's run."""
    is_first = np.r_[True, (np.diff(groups, axis=0) != 0).any(axis=1)]
    return np.flatnonzero(is_first), np.cumsum(is_first) - 1


def _centred(X: Rows) -> Similarities:
    Z = X.astype(np.float32)
    for axis in (1, 0):
        Z -= Z.mean(axis=axis, keepdims=True)
        Z /= np.maximum(np.linalg.norm(Z, axis=1, keepdims=True), np.float32(1e-12))
    return Z


def calibrate(near: Neighbours, n_encoders: int) -> Threshold:
    """Return the threshold that half of the images reach with a frame of their own patient.

    Parameters
    ----------
    near
        Neighbours by one encoder.
    n_encoders
        Number of encoders that have to agree; alone, one has to be surer.
    """
    lowest, highest = RATIOS[0], RATIOS[1] if n_encoders > 1 else RATIOS[1] / 2
    measured = np.flatnonzero(np.isfinite(near.own))
    if len(measured) < max(2, _FEWEST_PAIRS * len(near.own)):
        return Threshold(-1.0, lowest, 0)
    distance = np.maximum(1 - near.own[measured], _LEAST)
    ratio = np.median(distance / np.maximum(1 - near.reference[measured], _LEAST))
    return Threshold(
        float(1 - np.median(distance)), float(np.clip(ratio, lowest, highest)), len(measured)
    )


def near_duplicates(
    scene: Scene,
    near: Mapping[str, Neighbours],
    thresholds: Mapping[str, Threshold],
    facts: Sequence[PictureFacts | None],
) -> list[AuditFinding]:
    """Return the images that every encoder, and the hash, takes for another patient's.

    Images whose pixels are equal are left out: another finding has them.

    Parameters
    ----------
    scene
        The images.
    near, thresholds
        Neighbours and threshold by encoder.
    facts
        Digest and hash of each picture; None where it is not here, so that the encoders decide.
    """
    image, twin = _candidates(near)
    is_near = np.array(scene.patient_id)[image] != np.array(scene.patient_id)[twin]
    is_near &= _is_like(facts, image, twin, MOST_BITS[len(near) > 1])
    least = np.ones(len(image), np.float32)
    for name, by_encoder in near.items():
        threshold = thresholds[name]
        similarity = np.einsum("nd,nd->n", by_encoder.Z[image], by_encoder.Z[twin])
        distance = np.maximum(1 - similarity, _LEAST)
        reference = np.maximum(by_encoder.reference[image], by_encoder.reference[twin])
        reach = np.maximum(1 - reference, _LEAST)
        is_near &= (similarity >= threshold.similarity) & (distance <= threshold.ratio * reach)
        least = np.minimum(least, similarity)
    pairs = [
        (int(image[number]), int(twin[number]), float(least[number]))
        for number in np.flatnonzero(is_near)[np.argsort(-least[is_near], kind="stable")]
    ]
    trained = [pair for pair in pairs if scene.trains(pair[:2])]
    tested = [pair for pair in pairs if not scene.trains(pair[:2])]
    return [
        *_finding(scene, "leak", trained, ""),
        *_finding(scene, "warning", tested, "; both are tested only, and count twice"),
    ]


def _candidates(near: Mapping[str, Neighbours]) -> tuple[Codes, Codes]:
    """Return each image with its nearest one of another patient by each encoder, pairs once."""
    pairs = [np.stack([np.arange(len(n.other)), n.other], axis=1) for n in near.values()]
    image, twin = np.unique(np.concatenate(pairs), axis=0).T
    return image, twin


def _is_like(
    facts: Sequence[PictureFacts | None], image: Codes, twin: Codes, most_bits: int
) -> NDArray[np.bool_]:
    """Tell which pairs of pictures are not equal, but have nearly the same hash; shape (pairs,)."""
    is_here = np.array([fact is not None for fact in facts], bool)
    hashes = np.array([int(fact.hash, 16) if fact else 0 for fact in facts], np.uint64)
    pixels = np.array([fact.pixels if fact else "" for fact in facts])
    is_like = hash_distance(hashes[image], hashes[twin]) <= most_bits
    is_like &= pixels[image] != pixels[twin]
    return np.asarray(is_like | ~(is_here[image] & is_here[twin]))


def _finding(
    scene: Scene, severity: Severity, pairs: Sequence[tuple[int, int, float]], so: str
) -> list[AuditFinding]:
    if not pairs:
        return []
    best: dict[int, Suspect] = {}
    for image, twin, similarity in pairs:  # the most alike first
        suspect = Suspect(scene.image_id[image], scene.image_id[twin], round(similarity, 4))
        best.setdefault(image, suspect)
    suspects = tuple(best.values())
    message = (
        f"{len(suspects)} images nearly repeat one of another patient, first "
        f"'{suspects[0].image_id}' like '{suspects[0].twin}'{so}; look at them, and give both one "
        "patient_id or leave them out with --where"
    )
    return [AuditFinding("near-duplicate", severity, message, suspects)]
