"""Statistics written out as docs/protocol.md explains them, for comparison."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import t as student


def interval(value, left_out, n_holders, *, is_share=True):
    """The 95 % interval of a score, given what it is without each patient."""
    n = len(left_out)
    squares = [(n - 1) / n * (x - np.mean(left_out)) ** 2 for x in left_out]
    variance = sum(squares)
    more = max(squares) if is_share else 0
    effective = (variance + more) ** 2 / (sum(square**2 for square in squares) + more**2)
    t = student.ppf(0.975, max(1, min(2 * effective - 1, n_holders - 1)))
    if not is_share:
        half = t * math.sqrt(variance)
        return value - half, value + half
    images = value * (1 - value) / variance
    # Wilson: the p at which (value - p)^2 = t^2 p (1 - p) / images.
    a, b, c = 1 + t**2 / images, -(2 * value + t**2 / images), value**2
    root = math.sqrt(b**2 - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)
