"""Zero-shot classification: each image goes to the class whose prompts it is nearest to.

References
----------
Radford et al. 2021, arXiv 2103.00020, section 3.1: prompt ensembling in the embedding space.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

# CLIP's own, to which its training clips the learned temperature. It moves no argmax.
LOGIT_SCALE: Final = 100.0


def class_embeddings(prompts: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float64]:
    """Return one direction a class: its prompts' directions, averaged.

    Parameters
    ----------
    prompts
        Embedding of each prompt, class after class, shape (sum of counts, dim), float32.
    counts
        Number of prompts of each class.

    Returns
    -------
    Shape (len(counts), dim), unit length.
    """
    parts = np.split(_unit(prompts), np.cumsum(counts)[:-1])
    return _unit(np.stack([part.mean(axis=0) for part in parts]))


def zero_shot(images: NDArray[np.float32], classes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the probability of each class for each image: softmax of 100 x cosine.

    Parameters
    ----------
    images
        Shape (n, dim), of any length.
    classes
        See `class_embeddings`.

    Returns
    -------
    Shape (n, len(classes)).
    """
    probability: NDArray[np.float64] = softmax(LOGIT_SCALE * _unit(images) @ classes.T, axis=1)
    return probability


def _unit(rows: NDArray[np.floating]) -> NDArray[np.float64]:
    exact = rows.astype(np.float64)
    lengths: NDArray[np.float64] = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / lengths
