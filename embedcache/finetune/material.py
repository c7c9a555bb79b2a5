"""The material of fine-tuning: pictures of each cohort, and from these a job for every fold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embedcache.data.cohorts import Cohorts
from embedcache.data.embeddings import LabelledEmbeddings, check_cohorts
from embedcache.data.folds import FoldTable
from embedcache.encoders.registry import Identified
from embedcache.errors import MissingEmbeddingsError
from embedcache.finetune.recipe import Recipe
from embedcache.finetune.splits import Split, split_fold
from embedcache.probes.logistic import LogisticPath
from embedcache.store.embedding_store import EmbeddingStore

if TYPE_CHECKING:
    from embedcache.finetune.jobs import FoldJob, Part
    from embedcache.finetune.regimes import Regime


@dataclass(frozen=True, slots=True)
class Material:
    """Images with their labels and patients, as an encoder sees them.

    Parameters
    ----------
    encoder
        The encoder to train.
    folds
        Fold of each training patient.
    seed
        Seed of everything that is drawn.
    pictures
        Pictures, fitted as the encoder fits them.
    cohorts
        Images of each cohort, the training one first; `X` is empty.
    key_of
        Key of an image's picture, by `image_id`.
    n_skipped
        Number of images that could not be read.
    """

    encoder: Identified
    folds: FoldTable
    seed: int
    pictures: EmbeddingStore
    cohorts: tuple[LabelledEmbeddings, ...]
    key_of: Mapping[str, str]
    n_skipped: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Classes of the training cohort, sorted."""
        return tuple(sorted(set(self.cohorts[0].label)))

    @property
    def fold(self) -> NDArray[np.int64]:
        """Fold of each training image, shape (n,)."""
        return self.folds.of(self.cohorts[0].patient_id)

    def keys(self, cohort: LabelledEmbeddings) -> list[str]:
        """Return the keys of a cohort's pictures."""
        return [self.key_of[image] for image in cohort.image_id]

    def splits(self, validation: float) -> dict[int, Split]:
        """Return who trains, who chooses the epoch and who tests, for each fold.

        Parameters
        ----------
        validation
            Share of the training patients that chooses the epoch.
        """
        train, fold = self.cohorts[0], self.fold
        return {
            number: split_fold(
                train.patient_id,
                train.label,
                fold,
                number,
                validation=validation,
                seed=self.seed,
            )
            for number in np.unique(fold).tolist()
        }


def gather(
    cohorts: Cohorts, folds: FoldTable, encoder: Identified, pictures: EmbeddingStore
) -> Material:
    """Return the images of a question whose pictures are there.

    Parameters
    ----------
    cohorts
        Images that train and test.
    folds
        Fold of each training patient.
    encoder
        The encoder to train.
    pictures
        Pictures of these images, fitted as the encoder fits them.

    Raises
    ------
    MissingEmbeddingsError
        No image of a cohort can be read.
    LeakageError
        A training patient stands in an external cohort.
    """
    keys = cohorts.images.keys
    readable = {
        # An image whose file cannot be read has no picture; `n_skipped` counts it.
        name: [number for number in numbers if keys[number] in pictures]
        for name, numbers in cohorts.parts.items()
    }
    for name, numbers in readable.items():
        if not numbers:
            raise MissingEmbeddingsError(
                f"no image of cohort '{name}' can be read; `embedcache manifest check` says why, "
                f"--where \"cohort <> '{name}'\" leaves it out"
            )
    rows = tuple(_rows(cohorts, encoder, name, numbers) for name, numbers in readable.items())
    check_cohorts(rows[0], rows[1:])
    names = cohorts.images.table["image_id"].to_pylist()
    n_images = sum(map(len, cohorts.parts.values()))
    return Material(
        encoder=encoder,
        folds=folds,
        seed=cohorts.question.seed,
        pictures=pictures,
        cohorts=rows,
        key_of={image: key for image, key in zip(names, keys, strict=True) if key is not None},
        n_skipped=n_images - sum(map(len, rows)),
    )


def _rows(
    cohorts: Cohorts, encoder: Identified, name: str, numbers: Sequence[int]
) -> LabelledEmbeddings:
    return LabelledEmbeddings(
        encoder=encoder.spec.name,
        fingerprint=str(encoder.fingerprint),
        X=np.empty((len(numbers), 0), np.float32),
        image_id=cohorts.column("image_id", numbers),
        patient_id=cohorts.column("patient_id", numbers),
        cohort=(name,) * len(numbers),
        label=tuple(cohorts.labels[number] for number in numbers),
    )


def fold_jobs(
    material: Material,
    regime: Regime,
    recipe: Recipe,
    probes: Mapping[int, LogisticPath],
    *,
    training: Path,
    logs: Path,
    workers: int,
) -> list[FoldJob]:
    """Return a job for each fold, in the folds' order.

    Parameters
    ----------
    material
        Images with their labels and patients.
    regime
        Part of the classifier that is trained.
    recipe
        Numbers of the training.
    probes
        Probe that the head starts at, by fold; empty where it starts at random.
    training, logs
        Folders of the run; each fold has one of its own inside.
    workers
        Number of processes that read pictures.
    """
    from embedcache.finetune.jobs import FoldJob

    train, *external = material.cohorts

    return [
        FoldJob(
            fold=number,
            seed=material.seed,
            encoder=material.encoder,
            regime=regime,
            recipe=recipe,
            n_classes=len(material.classes),
            train=_part(material, train, split.train),
            validation=_part(material, train, split.validation),
            tests=(_part(material, train, split.test), *(_part(material, c) for c in external)),
            probe=probes.get(number),
            pixels=material.pictures.folder,
            folder=training / f"fold-{number}",
            logs=logs / f"fold-{number}",
            workers=workers,
        )
        for number, split in material.splits(recipe.validation).items()
    ]


def _part(
    material: Material, rows: LabelledEmbeddings, numbers: NDArray[np.intp] | None = None
) -> Part:
    """Return some images of a cohort by row number, or all of them, with codes of their classes."""
    from embedcache.finetune.jobs import Part

    if numbers is None:
        numbers = np.arange(len(rows))
    codes = np.searchsorted(material.classes, np.array(rows.label)[numbers])
    keys = np.array(material.keys(rows))[numbers]
    return Part(tuple(keys.tolist()), codes.astype(np.int64))
