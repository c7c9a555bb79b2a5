"""What a probe has to beat: rows that hold no picture, and labels that mean nothing.

Each control goes through the very protocol that the encoders go through, for any task. The shuffled
labels are test 1 of Ojala and Garriga 2010, Journal of Machine Learning Research 11: labels move in
the order of other patients, so that neighbouring frames keep having one label and a protocol that
lets a patient leak would show.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

_MOST_SIZES: Final = 200  # that get a column of their own


def majority_features(n_images: int) -> NDArray[np.float32]:
    """Return one feature that never varies, shape (n_images, 1).

    A probe of it learns the shares of the classes or labels, or the mean of a number.
    """
    return np.zeros((n_images, 1), np.float32)


def metadata_features(
    train: Sequence[int] | NDArray[np.intp],
    *,
    device: Sequence[str] | None = None,
    sizes: NDArray[np.int64] | None = None,
) -> NDArray[np.float32]:
    """Return what is known of each image without looking at it, shape (n, columns).

    One column a device and a size of the training images, the 200 most frequent sizes, and width,
    height and their ratio, by logarithm. There are no columns where nothing is known.

    Parameters
    ----------
    train
        Numbers of the training images, which decide the columns.
    device
        Name of each image's device, '' where it is not known; None where no image has one.
    sizes
        Width and height of each image in pixels, shape (n, 2). None, or a size of 0 anywhere,
        leaves sizes out: which ones are missing would say something.
    """
    rows = np.asarray(train, np.intp)
    columns: list[NDArray[np.bool_] | NDArray[np.float64]] = []
    n_images = 0
    if device is not None:
        devices = np.array(device)
        n_images = len(devices)
        columns += [devices == name for name in np.unique(devices[rows])]
    if sizes is not None and sizes.size:
        n_images = len(sizes)
        if sizes.min() > 0:
            kinds, counts = np.unique(sizes[rows], axis=0, return_counts=True)
            frequent = kinds[np.argsort(-counts, kind="stable")[:_MOST_SIZES]]
            columns += [(sizes == kind).all(axis=1) for kind in frequent]
            width, height = np.log(sizes.T)
            columns += [width, height, width - height]
    return np.array(columns, np.float32).T if columns else np.empty((n_images, 0), np.float32)


def shuffled_labels(
    patient_id: Sequence[str], label: Sequence[str], *, seed: int
) -> tuple[str, ...]:
    """Return the labels with their patients in another order, laid over the images anew.

    Parameters
    ----------
    patient_id
        Patient of each image.
    label
        Label of each image, of any task.
    seed
        Seed of the order of the patients.
    """
    patient, labels = np.array(patient_id), np.array(label)
    order = np.random.default_rng(seed).permutation(np.unique(patient))
    place = {name: number for number, name in enumerate(order)}
    moved = np.argsort([place[name] for name in patient], kind="stable")
    shuffled = np.empty_like(labels)
    shuffled[np.argsort(patient, kind="stable")] = labels[moved]
    return tuple(shuffled.tolist())
