"""`zeroshot`: classify cached embeddings by text prompts; nothing is trained, no image encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Final

import numpy as np

from embedcache.audit.finding import AuditFinding, Scene
from embedcache.audit.identical import cheap_findings
from embedcache.catalog.query import select_images
from embedcache.data.cohorts import check_cohort_names, label_column
from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.image_table import Images
from embedcache.data.predictions import Predictions
from embedcache.data.question import Question
from embedcache.datasets.prompts import PromptClass, read_prompts
from embedcache.encoders import registry
from embedcache.encoders.plugins import foreign_code, register_file
from embedcache.encoders.select import EncoderOptions, identify_stored
from embedcache.errors import RunError
from embedcache.probes.zero_shot import LOGIT_SCALE, class_embeddings, zero_shot
from embedcache.runs.methods import ZeroShotMethod
from embedcache.runs.once import Computed, once
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.request import RunData, RunRequest, rows_digest
from embedcache.scoring.evaluate import SCORES
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs.audited import AuditedRuns
from embedcache.verbs.catalog import renew_catalog
from embedcache.verbs.left_out import check_any_run, leaving_out
from embedcache.verbs.probe_run import versions_of
from embedcache.verbs.session import ALL, Session

PROTOCOL: Final = "prompt-ensemble-1"
_DECISIVE: Final = ("embedcache-fm", "numpy", "open_clip_torch", "torch")


@dataclass(frozen=True, slots=True)
class ZeroShotOptions:
    """What to ask, of which images.

    Parameters
    ----------
    prompts
        Name of a built-in prompt set, or a YAML file; see `datasets.prompts`.
    label
        Manifest column that holds the class.
    cohorts
        Names of the cohorts to test on; None for every one.
    where
        SQL predicate over manifest columns; None for all images.
    seed
        Seed of the resamples of patients.
    n_resamples
        Number of resamples of patients behind the interval of the ECE.
    encoders
        Source of the text half of the model.
    device
        Device on which the text half runs.
    """

    prompts: str = "fetal-planes"
    label: str = "label"
    cohorts: tuple[str, ...] | None = None
    where: str | None = None
    seed: int = 0
    n_resamples: int = 10_000
    encoders: EncoderOptions = field(default_factory=EncoderOptions)
    device: str = "auto"


@dataclass(frozen=True, slots=True)
class _Cohorts:
    """Images asked about, by cohort, and the name that each class of prompts has there.

    Parameters
    ----------
    labels
        Label of every image of the table.
    numbers
        Row numbers of each cohort's images.
    classes
        Classes of the prompts.
    names
        Label that each class stands for.
    findings
        Faults that the table of these images tells.
    notes
        What was left out and why, and the findings.
    """

    labels: tuple[str, ...]
    numbers: dict[str, tuple[int, ...]]
    classes: tuple[PromptClass, ...]
    names: tuple[str, ...]
    findings: tuple[AuditFinding, ...]
    notes: tuple[str, ...]


def zeroshot(
    session: Session,
    models: Sequence[str],
    options: ZeroShotOptions,
    on_message: Callable[[str], None] = lambda _: None,
    on_run: Callable[[RunOutcome], None] = lambda _: None,
) -> AuditedRuns:
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
    if options.encoders.encoder_file is not None:
        register_file(options.encoders.encoder_file)
    cohorts = _choose_cohorts(session, options)
    for note in cohorts.notes:
        on_message(note)
    stores = [session.find_store(name) for name in session.model_names(models)]
    if ALL in models:
        stores = [store for store in stores if store.document["spec"]["output"] == "projected"]
    if not stores:
        raise RunError(
            f"{session.workspace.store} holds no embeddings of a model that reads as well; run "
            "`embedcache extract -m fetalclip`"
        )
    outcomes = []
    for store in stores:
        with leaving_out(store.name, models):
            outcomes.append(_outcome(session, store, cohorts, options))
            on_run(outcomes[-1])
    check_any_run(outcomes, [store.name for store in stores], session.workspace.store)
    renew_catalog(session)
    return AuditedRuns(tuple(outcomes), cohorts.findings)


def _choose_cohorts(session: Session, options: ZeroShotOptions) -> _Cohorts:
    images = session.images
    classes = read_prompts(options.prompts)
    labels = label_column(images, options.label)
    cohort_of = images.table["cohort"].to_pylist()
    wanted = options.cohorts or tuple(dict.fromkeys(cohort_of))
    check_cohort_names(wanted, cohort_of)
    selected = select_images(images.table, options.where)
    names = tuple(entry.label_in({labels[number] for number in selected}) for entry in classes)
    numbers, notes = {}, []
    for name in wanted:
        of_cohort = [number for number in selected if cohort_of[number] == name]
        usable = tuple(number for number in of_cohort if labels[number] in names)
        if len(usable) < len(of_cohort):
            strange = sorted({labels[number] or "(none)" for number in of_cohort} - set(names))
            notes.append(
                f"{len(of_cohort) - len(usable)} images of '{name}' left out: the prompts have no "
                f"class for {', '.join(strange)}"
            )
        if usable:
            numbers[name] = usable
    if not numbers:
        raise RunError(
            f"no image has a '{options.label}' that {options.prompts} knows; it knows "
            f"{', '.join(label for entry in classes for label in entry.labels)}"
        )
    findings = tuple(_findings(images, labels, numbers))
    notes += [finding.message for finding in findings]
    return _Cohorts(tuple(labels), numbers, classes, names, findings, tuple(notes))


def _findings(
    images: Images, labels: Sequence[str], cohorts: Mapping[str, Sequence[int]]
) -> list[AuditFinding]:
    """Return the faults of images that are only tested."""
    numbers = [number for part in cohorts.values() for number in part]
    keys = images.keys
    scene = Scene(
        image_id=images.column("image_id", numbers),
        patient_id=images.column("patient_id", numbers),
        label=tuple(labels[number] for number in numbers),
        cohort=images.column("cohort", numbers),
        key=tuple(keys[number] for number in numbers),
        fold=np.full(len(numbers), -1),
    )
    return cheap_findings(scene, 0, "classification")


def _outcome(
    session: Session, store: EmbeddingStore, cohorts: _Cohorts, options: ZeroShotOptions
) -> RunOutcome:
    rows = [
        session.labelled_rows(store, cohorts.labels, numbers)
        for numbers in cohorts.numbers.values()
    ]
    question = Question(
        label=options.label,
        # Nothing is trained, so all cohorts are external ones.
        external=tuple(cohorts.numbers),
        where=options.where,
        seed=options.seed,
    )
    digests = tuple(map(rows_digest, rows))
    request = RunRequest(
        kind="zeroshot",
        encoder=store.name,
        fingerprint=store.fingerprint,
        question=question,
        method=ZeroShotMethod(tuple(map(asdict, cohorts.classes)), LOGIT_SCALE),
        data=RunData(None, digests, None, session.snapshot),
        constants={"protocol": PROTOCOL, "scores": SCORES},
        n_resamples=options.n_resamples,
        versions=versions_of(_DECISIVE),
    )

    def compute() -> Computed:
        # Here, not before: a stored run needs no text half.
        directions = _class_directions(session, store, cohorts.classes, options)
        return Computed([_predict(part, cohorts.names, directions) for part in rows])

    n_skipped = sum(part.n_failed for part in rows)
    return once(session.runs, request, compute, n_skipped=n_skipped, notes=cohorts.notes)


def _class_directions(
    session: Session,
    store: EmbeddingStore,
    classes: Sequence[PromptClass],
    options: ZeroShotOptions,
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    documents = session.encoder_documents.values()
    encoder = identify_stored(
        session.workspace, store.document, session.digests, documents, options.encoders
    )
    offline = options.encoders.offline
    texts = registry.load_text(encoder, device=options.device, offline=offline)
    with foreign_code(f"the text half of '{store.name}' failed"):
        rows = texts.encode([prompt for entry in classes for prompt in entry.prompts])
    return class_embeddings(rows, [len(entry.prompts) for entry in classes])


def _predict(
    rows: LabelledEmbeddings,
    names: tuple[str, ...],
    directions: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
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
