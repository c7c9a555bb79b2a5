"""What fine-tuning is given: the pictures of each cohort, and of these a job for every fold."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embedcache.data.embeddings import LabelledEmbeddings, check_cohorts
from embedcache.encoders.registry import Identified
from embedcache.errors import MissingEmbeddingsError
from embedcache.extract.pictures import hold_pixels
from embedcache.extract.report import Progress
from embedcache.finetune.recipe import Recipe
from embedcache.finetune.splits import Split, split_fold
from embedcache.probes.logistic import LogisticPath, fit_sweep
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs import state
from embedcache.verbs.probing import ProbeOptions, Question, load_rows, probe

if TYPE_CHECKING:
    from embedcache.finetune.jobs import FoldJob, Part
    from embedcache.finetune.regimes import Regime


@dataclass(frozen=True, slots=True)
class Material:
    """Images with their labels and patients, as an encoder sees them.

    Parameters
    ----------
    question
        What is predicted, of whom, on which folds.
    found
        The encoder.
    store
        The pictures, fitted as the encoder fits them.
    cohorts
        Who is in each cohort, the training one first; `X` is empty.
    key_of
        The key of an image's picture in the store, by `image_id`.
    n_skipped
        Images that could not be read.
    """

    question: Question
    found: Identified
    store: EmbeddingStore
    cohorts: tuple[LabelledEmbeddings, ...]
    key_of: Mapping[str, str]
    n_skipped: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Of the training cohort, sorted."""
        return tuple(sorted(set(self.cohorts[0].label)))

    @property
    def fold(self) -> NDArray[np.int64]:
        """The fold of each training image."""
        return self.question.folds.of(self.cohorts[0].patient_id)

    def keys(self, cohort: LabelledEmbeddings) -> list[str]:
        """Return the keys of a cohort's pictures."""
        return [self.key_of[image] for image in cohort.image_id]


def gather(
    question: Question,
    found: Identified,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: Callable[[str], None] = lambda _: None,
) -> Material:
    """Decode and fit every image of a question that is not held yet.

    Raises
    ------
    MissingEmbeddingsError
        There is no manifest, so no images; or none of a cohort can be read.
    LeakageError
        A training patient stands in an external cohort.
    """
    asked = question.cohorts
    wanted = {asked.train_cohort: asked.train, **asked.external}
    numbers = sorted({number for some in wanted.values() for number in some})
    images = asked.images
    if not images.files:
        raise MissingEmbeddingsError(
            f"{question.workspace.manifest}: no such manifest; fine-tuning reads the images "
            "themselves, so run it where they are"
        )
    store, _ = hold_pixels(
        question.workspace,
        found.spec.preprocess,
        [images.files[number] for number in numbers],
        on_progress=on_progress,
        on_message=on_message,
    )
    keys = images.keys
    held = {
        name: [number for number in some if keys[number] in store] for name, some in wanted.items()
    }
    for name, some in held.items():
        if not some:
            raise MissingEmbeddingsError(
                f"no image of cohort '{name}' can be read; `embedcache manifest check` says why, "
                f"--where \"cohort <> '{name}'\" leaves it out"
            )
    cohorts = tuple(
        LabelledEmbeddings(
            encoder=found.spec.name,
            fingerprint=str(found.fingerprint),
            X=np.empty((len(some), 0), np.float32),
            image_id=asked.column("image_id", some),
            patient_id=asked.column("patient_id", some),
            cohort=(name,) * len(some),
            label=tuple(asked.labels[number] for number in some),
        )
        for name, some in held.items()
    )
    check_cohorts(cohorts[0], cohorts[1:])
    return Material(
        question=question,
        found=found,
        store=store,
        cohorts=cohorts,
        key_of={
            image: key
            for image, key in zip(images.table["image_id"].to_pylist(), keys, strict=True)
            if key is not None
        },
        n_skipped=sum(len(some) - len(held[name]) for name, some in wanted.items()),
    )


def fold_jobs(
    material: Material,
    regime: Regime,
    recipe: Recipe,
    *,
    training: Path,
    logs: Path,
    workers: int,
    probe_options: ProbeOptions,
) -> list[FoldJob]:
    """Return what is to be trained, a job a fold, in the folds' order.

    Parameters
    ----------
    training, logs
        Folders of the run; each fold has one of its own inside.
    workers
        Processes that read pictures.
    probe_options
        Of the probe that LP-FT starts at.

    Raises
    ------
    MissingEmbeddingsError
        LP-FT, and the encoder's embeddings are not cached.
    """
    from embedcache.finetune.jobs import FoldJob, Part

    train, *external = material.cohorts
    seed = material.question.cohort_options.seed
    fold, classes = material.fold, material.classes
    splits = {
        int(number): split_fold(
            train.patient_id,
            train.label,
            fold,
            int(number),
            validation=recipe.validation,
            seed=seed,
        )
        for number in np.unique(fold)
    }
    probes = {}
    if regime.starts_at_probe:
        probes = dict(
            zip(splits, _probes(material, [*splits.values()], probe_options), strict=True)
        )

    def part(rows: LabelledEmbeddings, numbers: Any = slice(None)) -> Part:
        codes = np.searchsorted(classes, np.array(rows.label)[numbers])
        keys = np.array(material.keys(rows))[numbers]
        return Part(tuple(keys.tolist()), codes.astype(np.int64))

    return [
        FoldJob(
            fold=number,
            seed=seed,
            found=material.found,
            regime=regime,
            recipe=recipe,
            n_classes=len(classes),
            train=part(train, split.train),
            validation=part(train, split.validation),
            tests=(part(train, split.test), *(part(one) for one in external)),
            probe=probes.get(number),
            pixels=material.store.folder,
            folder=training / f"fold-{number}",
            logs=logs / f"fold-{number}",
            workers=workers,
        )
        for number, split in splits.items()
    ]


def _probes(
    material: Material, splits: Sequence[Split], options: ProbeOptions
) -> list[LogisticPath]:
    """Return the probe of each fold's training part, with the C that the probe's run chose.

    Fitted without the patients that choose the epoch: or the first epoch would have seen them.
    """
    question, found = material.question, material.found
    model = f"{found.spec.name}@{str(found.fingerprint)[:12]}"
    store = state.find_store(question.workspace, model)
    [outcome] = probe(question.workspace, [model], question.cohort_options, options)
    rows = load_rows(question, store)[0]
    here = {image: number for number, image in enumerate(rows.image_id)}
    train = material.cohorts[0]
    absent = [image for image in train.image_id if image not in here]
    if absent:
        raise MissingEmbeddingsError(
            f"{len(absent)} training images have no '{found.spec.name}' embedding, first "
            f"'{absent[0]}'; run `embedcache extract --model {found.spec.name}`"
        )
    order = np.array([here[image] for image in train.image_id])
    y = np.searchsorted(material.classes, np.array(rows.label)).astype(np.int64)
    problems = [
        (order[split.train], [float(value)])
        for split, value in zip(splits, outcome.run.results["C"], strict=True)
    ]
    return fit_sweep(rows.X, y, len(material.classes), problems)
