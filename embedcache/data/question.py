"""What is asked of images: which label, of whom, who trains, who tests, on which folds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from embedcache.data.folds import FoldTable
from embedcache.data.task_names import TaskName

N_FOLDS: Final = 5  # unless a question has others


@dataclass(frozen=True, slots=True)
class Question:
    """A question to every encoder alike, as it is asked or as a run's record keeps it.

    Parameters
    ----------
    label
        Manifest column that holds the class, the number or the labels of an image.
    task
        Kind of label: one class ('classification'), a number ('regression'), or several labels
        ('multilabel').
    train_cohort
        Name of the cohort that trains; None for the one with most patients, or, in a record,
        where nothing was trained.
    external
        Names of the cohorts that only test; None for every other one that shares a class with
        the training cohort.
    where
        SQL predicate over manifest columns that holds for every image; None for all images.
    class_map
        CSV file (label, class) or name of a built-in class map; labels it lacks are left out.
    classes
        Content of that class map, label to class, where it has been read; then the file is not
        read again.
    folds
        Number of patient folds, a CSV file (patient_id, fold), or a table of folds; None where a
        column is yet to tell.
    folds_by
        Manifest column of which each value makes a fold, such as 'center'; None where none does.
    seed
        Seed of folds, of a training, and of what a score draws.
    official_split
        Whether images of the training cohort whose manifest column `split` is 'test' are the first
        external cohort, and only those with 'train' train.
    """

    label: str = "label"
    task: TaskName = "classification"
    train_cohort: str | None = None
    external: tuple[str, ...] | None = None
    where: str | None = None
    class_map: str | None = None
    classes: Mapping[str, str] | None = None
    folds: int | Path | FoldTable | None = N_FOLDS
    folds_by: str | None = None
    seed: int = 0
    official_split: bool = False

    @property
    def n_folds(self) -> int | None:
        """Number of folds; None where a file or a column is yet to tell."""
        if isinstance(self.folds, FoldTable):
            return self.folds.n_folds
        return self.folds if isinstance(self.folds, int) else None

    def document(self) -> dict[str, Any]:
        """Return the question as JSON can hold it; of folds, only number and column."""
        return {
            "label": self.label,
            "task": self.task,
            "train_cohort": self.train_cohort,
            "external": None if self.external is None else list(self.external),
            "where": self.where,
            "class_map": self.class_map,
            "classes": None if self.classes is None else dict(self.classes),
            "n_folds": self.n_folds,
            # Absent where there is none: a question has the digest that it always had.
            **({"folds_by": self.folds_by} if self.folds_by else {}),
            "seed": self.seed,
            "official_split": self.official_split,
        }

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Self:
        """Return the question in a document; a key that it lacks has its default."""
        names = set(cls.__dataclass_fields__) - {"external", "folds"}
        external = document.get("external")
        return cls(
            **{name: document[name] for name in names if name in document},
            external=None if external is None else tuple(external),
            folds=document.get("n_folds") or cls().folds,
        )

    def on_folds(self, folds: FoldTable) -> Self:
        """Return the same question on a table of folds."""
        return replace(self, folds=folds)
