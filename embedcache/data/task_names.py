"""The kinds of label that a question can be about."""

from __future__ import annotations

from typing import Literal

# One class an image, a number, or several labels.
TaskName = Literal["classification", "regression", "multilabel"]
