"""`zeroshot`: classify cached embeddings by text prompts; nothing is trained, no image encoded."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np

from embedcache.catalog.query import select_images
from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.predictions import Predictions
from embedcache.datasets.prompts import PromptClass, read_prompts
from embedcache.encoders import registry
from embedcache.encoders.plugins import register_file
from embedcache.errors import ManifestError, RunError
from embedcache.files.digests import DigestCache
from embedcache.files.durable import utc_now
from embedcache.probes.zero_shot import LOGIT_SCALE, class_embeddings, zero_shot
from embedcache.runs import files as run_files
from embedcache.runs.record import Run, run_id_of
from embedcache.scoring.evaluate import evaluate
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs import state
from embedcache.verbs.cohorts import label_column, load_embeddings
from embedcache.verbs.extract import identify_store
from embedcache.verbs.probing import RunOutcome, probe_models, rows_digest, stored_outcome
from embedcache.workspace import Workspace

PROTOCOL: Final = "prompt-ensemble-1"
_DECISIVE: Final = ("numpy", "open_clip_torch", "torch")


@dataclass(frozen=True, slots=True)
class ZeroShotOptions:
    """What to ask, of which images.

    Parameters
    ----------
    prompts
        Name of a built-in prompt set, or a YAML file; see `datasets.prompts`.
    label
        The manifest column that holds the class.
    cohorts
        None: every cohort.
    where
        A SQL predicate over manifest columns.
    seed, n_resamples
        Of the patient bootstrap.
    weights, encoder_file, device, offline
        As for `extract`, for the text half of the model.
    """

    prompts: str = "fetal-planes"
    label: str = "label"
    cohorts: tuple[str, ...] | None = None
    where: str | None = None
    seed: int = 0
    n_resamples: int = 10_000
    weights: Path | None = None
    encoder_file: Path | None = None
    device: str = "auto"
    offline: bool = False


@dataclass(frozen=True, slots=True)
class _Question:
    """The images asked about, by cohort, and the name of each class there."""

    images: state.Images
    labels: tuple[str, ...]
    cohorts: dict[str, tuple[int, ...]]
    classes: tuple[PromptClass, ...]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def zeroshot(
    workspace: Workspace,
    models: Sequence[str],
    options: ZeroShotOptions,
    *,
    on_message: Callable[[str], None] = lambda _: None,
    on_run: Callable[[RunOutcome], None] = lambda _: None,
) -> list[RunOutcome]:
    """Classify the cached images of each model by its text half, and store the runs.

    Raises
    ------
    MissingEmbeddingsError
        A model lacks images of the cohorts.
    EncoderError
        A model has no text half, or its weights are not those of the cached images.
    RunError
        No image has a label that the prompts know.
    """
    if options.encoder_file is not None:
        register_file(options.encoder_file)
    images = state.load_images(workspace)
    question = _question(images, options)
    snapshot = state.save_snapshot(workspace, images)
    for note in question.notes:
        on_message(note)
    outcomes = []
    stores = [state.find_store(workspace, name) for name in probe_models(workspace, models)]
    if "all" in models:
        stores = [one for one in stores if one.document["spec"]["output"] == "projected"]
    if not stores:
        raise RunError(
            f"{workspace.store} holds no embeddings of a model that reads as well; run "
            "`embedcache extract -m fetalclip`"
        )
    for store in stores:
        outcomes.append(_answer(workspace, store, question, options, snapshot))
        on_run(outcomes[-1])
    state.renew_catalog(workspace, images)
    return outcomes


def _question(images: state.Images, options: ZeroShotOptions) -> _Question:
    classes = read_prompts(options.prompts)
    labels = label_column(images, options.label)
    cohort = images.table["cohort"].to_pylist()
    chosen = options.cohorts or tuple(dict.fromkeys(cohort))
    for name in chosen:
        if name not in cohort:
            raise ManifestError(
                f"no cohort '{name}' in the manifest; it has {', '.join(sorted(set(cohort)))}"
            )
    kept = select_images(images.table, options.where)
    names = tuple(one.label_in({labels[number] for number in kept}) for one in classes)
    cohorts, notes = {}, []
    for name in chosen:
        numbers = [number for number in kept if cohort[number] == name]
        known = tuple(number for number in numbers if labels[number] in names)
        if len(known) < len(numbers):
            strange = sorted({labels[number] or "(none)" for number in numbers} - set(names))
            notes.append(
                f"{len(numbers) - len(known)} images of '{name}' left out: the prompts have no "
                f"class for {', '.join(strange)}"
            )
        if known:
            cohorts[name] = known
    if not cohorts:
        raise RunError(
            f"no image has a '{options.label}' that {options.prompts} knows; it knows "
            f"{', '.join(label for one in classes for label in one.labels)}"
        )
    return _Question(images, tuple(labels), cohorts, classes, names, tuple(notes))


def _answer(
    workspace: Workspace,
    store: EmbeddingStore,
    question: _Question,
    options: ZeroShotOptions,
    snapshot: str,
) -> RunOutcome:
    start = time.perf_counter()
    cohorts = [
        load_embeddings(store, question.images, question.labels, numbers)
        for numbers in question.cohorts.values()
    ]
    n_skipped = sum(rows.n_failed for rows in cohorts)
    settings = {
        "protocol": PROTOCOL,
        "prompts": [asdict(one) for one in question.classes],
        "logit_scale": LOGIT_SCALE,
        "label": options.label,
        "external": list(question.cohorts),
        "where": options.where,
        "seed": options.seed,
        "n_resamples": options.n_resamples,
    }
    data = {"external": [rows_digest(rows) for rows in cohorts]}
    versions = {name: version(name) for name in _DECISIVE}
    run_id = run_id_of("zeroshot", store.name, [store.fingerprint, settings, data, versions])
    folder = Path(workspace.runs / run_id)
    if (folder / run_files.RECORD).exists():
        return stored_outcome(folder, n_skipped)
    directions = _class_directions(workspace, store, question.classes, options)
    predictions = [_predict(rows, question.names, directions) for rows in cohorts]
    estimates = evaluate(predictions, n_resamples=options.n_resamples, seed=options.seed)
    run = Run(
        run_id=run_id,
        kind="zeroshot",
        encoder=store.name,
        fingerprint=store.fingerprint,
        settings=settings,
        data={**data, "manifest": snapshot},
        results={"notes": list(question.notes), "n_skipped": n_skipped},
        versions=versions,
        created=utc_now(),
        seconds=round(time.perf_counter() - start, 3),
    )
    run_files.write_run(workspace.runs, run, predictions, estimates)
    return RunOutcome(run, tuple(estimates), n_skipped, was_cached=False, folder=folder)


def _class_directions(
    workspace: Workspace,
    store: EmbeddingStore,
    classes: Sequence[PromptClass],
    options: ZeroShotOptions,
) -> np.ndarray[Any, np.dtype[np.float64]]:
    found = identify_store(
        workspace,
        store,
        DigestCache(workspace.digests),
        weights=options.weights,
        offline=options.offline,
    )
    texts = registry.load_text(found, device=options.device)
    rows = texts.encode([prompt for one in classes for prompt in one.prompts])
    return class_embeddings(rows, [len(one.prompts) for one in classes])


def _predict(
    rows: LabelledEmbeddings,
    names: tuple[str, ...],
    directions: np.ndarray[Any, np.dtype[np.float64]],
) -> Predictions:
    order = np.argsort(names)  # `Predictions` wants its classes sorted
    return Predictions(
        role="external",
        classes=tuple(names[number] for number in order),
        image_id=rows.image_id,
        patient_id=rows.patient_id,
        cohort=rows.cohort,
        label=rows.label,
        fold=np.full(len(rows), -1),
        probability=zero_shot(rows.X, directions[order]),
    )
