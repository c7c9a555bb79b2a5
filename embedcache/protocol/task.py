"""What the nested loop asks of a task: the interface of one class, a number, several labels.

A `Task` brings what the loop of `embedcache.protocol.nested` does not know: the target, what folds
are stratified by, the fits, the score that a setting is chosen by, and the form of an answer.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.predictions import Answers, Role
from embedcache.files.arrays import Floats
from embedcache.probes.seam import Embeddings, Problems
from embedcache.protocol.search import Search, WholeGrid
from embedcache.runs.methods import ProbeMethod
from embedcache.scoring.estimates import HEADLINES


class Task(ABC):
    """The training cohort's side of one kind of question.

    Parameters
    ----------
    train
        Training cohort; every row labelled.
    method
        Checked settings of the probe; see `check_method`.

    Raises
    ------
    RunError
        Labels that the task cannot be learnt from.
    """

    name: ClassVar[str]
    is_calibrated: ClassVar[bool] = False  # whether temperatures are fitted
    setting_for_few: ClassVar[float]  # used where too few patients are left to choose on

    def __init__(self, train: LabelledEmbeddings, method: ProbeMethod) -> None:
        self.train, self.method = train, method

    @property
    def headline(self) -> str:
        """Metric that answers to this task are judged by."""
        return HEADLINES[self.name]

    @staticmethod
    @abstractmethod
    def strata(label: Sequence[str]) -> list[str]:
        """Return the stratum of each image, by which folds are balanced."""

    @abstractmethod
    def check_labels(self, cohort: LabelledEmbeddings) -> None:
        """Raise `RunError` if a label of an external cohort is none of this question."""

    @abstractmethod
    def fit_to_choose(self, problems: Problems) -> Sequence[Any]:
        """Return for each problem a path of probes that help to choose a setting."""

    def search(self, sets: Sequence[NDArray[np.intp]], grid: Sequence[float]) -> Search:
        """Return the probes of a grid, given the rows of each training set."""
        return WholeGrid(self.fit_to_choose([(rows, grid) for rows in sets]), len(grid))

    @abstractmethod
    def fit_to_predict(self, problems: Problems) -> Sequence[Any]:
        """Return for each problem a path of probes that predict."""

    @abstractmethod
    def predict(self, path: Any, X: Embeddings) -> Floats:
        """Return the predictions by value and row, shape (n_values, n, width)."""

    @abstractmethod
    def score(self, rows: NDArray[np.intp], predicted: Floats) -> Floats:
        """Return the score that a setting is chosen by, larger is better, shape (m,).

        Parameters
        ----------
        rows
            Numbers of the training images, shape (n,).
        predicted
            Their predictions by each of m values, shape (m, n, width).
        """

    @abstractmethod
    def loss(self, rows: NDArray[np.intp], predicted: Floats) -> Floats:
        """Return a smooth loss of the same predictions, less is better, shape (m,)."""

    @abstractmethod
    def grain(self, rows: NDArray[np.intp]) -> float:
        """Return about how much of the score one of these training images can make."""

    @abstractmethod
    def answers(
        self,
        cohort: LabelledEmbeddings,
        predicted: Floats,
        *,
        role: Role,
        fold: NDArray[np.int64],
    ) -> Answers:
        """Return predictions in the form of the task's answers.

        Parameters
        ----------
        cohort
            Images that were predicted.
        predicted
            Predictions of them, shape (n, width).
        role
            Part of the cohort in the run.
        fold
            Number of the fold that tested each image, shape (n,).
        """

    @abstractmethod
    def fewest_patients(self, rows: NDArray[np.intp]) -> int:
        """Return how many patients show the rarest thing to learn among these training images."""

    def temperature(
        self,
        rows: NDArray[np.intp],  # noqa: ARG002 - for the tasks that have a temperature
        predicted: Floats,  # noqa: ARG002
        probe: NDArray[np.int64],  # noqa: ARG002
    ) -> float | None:
        """Return the temperature of held-out predictions, shape (n, width); None without one.

        `probe` is the number of the probe that predicted each of them, shape (n,).
        """
        return None
