"""Choices about scores that a command line offers; importing them costs nothing."""

from __future__ import annotations

from typing import Literal

# Units that are scored: each image, or each patient's mean over images.
Level = Literal["image", "patient"]
# Answers that are allowed: all, or only classes that occur in the cohort.
Scoring = Literal["all", "masked"]
