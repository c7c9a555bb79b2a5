"""What a caller gives, as the values that verbs take: one name as several, texts as paths."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from embedcache.data.checks import check_at_least, check_choice
from embedcache.data.question import N_FOLDS, Question
from embedcache.data.task_names import TaskName
from embedcache.encoders.choices import PrecisionChoice
from embedcache.encoders.select import EncoderOptions
from embedcache.errors import RunError

Names = str | Sequence[str]  # a text is one name
PathLike = Path | str


def name_list(names: Names) -> tuple[str, ...]:
    """Return names as a tuple; a text is one name."""
    return (names,) if isinstance(names, str) else tuple(names)


def optional_names(names: Names | None) -> tuple[str, ...] | None:
    """Return names as a tuple, or None where none were given."""
    return None if names is None else name_list(names)


def optional_path(path: PathLike | None) -> Path | None:
    """Return a path, or None where none was given."""
    return None if path is None else Path(path)


def question_of(
    label: str,
    train_cohort: str | None,
    external: Names | None,
    where: str | None,
    class_map: PathLike | None,
    folds: int | PathLike | None,
    seed: int,
    task: TaskName = "classification",
    *,
    folds_by: str | None = None,
) -> Question:
    """Return the question that arguments state; see `Question`.

    Without `folds` and `folds_by` there are as many folds as a question has by default.
    """
    if folds is not None and folds_by is not None:
        raise RunError(f"folds {folds} and folds by '{folds_by}' are named; name one of the two")
    check_choice("task", task, TaskName)
    check_at_least("seed", seed, 0)
    if isinstance(folds, int):
        check_at_least("folds", folds, 2)
    elif folds is not None:
        folds = Path(folds)
    elif folds_by is None:
        folds = N_FOLDS
    return Question(
        label=label,
        task=task,
        train_cohort=train_cohort,
        external=optional_names(external),
        where=where,
        class_map=None if class_map is None else str(class_map),
        folds=folds,
        folds_by=folds_by,
        seed=seed,
    )


def encoder_options(
    weights: PathLike | None,
    encoder_file: PathLike | None,
    *,
    offline: bool,
    preprocess: str | None = None,
    precision: PrecisionChoice = "auto",
) -> EncoderOptions:
    """Return where encoders come from; see `EncoderOptions`."""
    files = optional_path(weights), optional_path(encoder_file)
    return EncoderOptions(files[0], preprocess, precision, files[1], offline)
