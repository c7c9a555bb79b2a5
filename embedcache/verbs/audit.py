"""`audit`: leaks, repeated images, shortcuts and likely label errors of a question's images."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from embedcache.audit.finding import SEVERITIES, AuditFinding, Scene
from embedcache.audit.identical import cheap_findings, identical
from embedcache.audit.labels import likely_label_errors
from embedcache.audit.near import Threshold, calibrate, near_duplicates, neighbours
from embedcache.audit.pictures import PictureFacts
from embedcache.audit.probing import (
    Score,
    fewer_features,
    image_folds,
    inflation,
    out_of_fold,
    predictions,
    score_of,
)
from embedcache.audit.shortcuts import Fact, facts_of, label_from_facts, picture_columns, shortcuts
from embedcache.data.predictions import Predictions
from embedcache.data.question import Question
from embedcache.errors import MissingEmbeddingsError, StoreCorruptError, StoreReadError
from embedcache.extract.report import Progress
from embedcache.files.arrays import Codes
from embedcache.files.durable import new_id, utc_now
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs.audit_files import facts_of_pictures, store_findings
from embedcache.verbs.audit_report import AuditOptions, AuditReport
from embedcache.verbs.catalog import renew_catalog
from embedcache.verbs.session import ALL, Session, Study, scene_of

OnMessage = Callable[[str], None]
OnProgress = Callable[[Progress], None]
N_ENCODERS: Final = 2  # that must agree on near-duplicates, where none are named
_RANDOM: Final = "random:"


def audit(
    session: Session,
    models: Sequence[str],
    question: Question,
    options: AuditOptions,
    on_message: OnMessage = lambda _: None,
    on_progress: OnProgress = lambda _: None,
) -> AuditReport:
    """Look for what makes the scores of a question wrong, and store what is there.

    Parameters
    ----------
    session, models
        The workspace, and names of encoders in it that must agree on near-duplicates; 'all' for two
        that hold every image.
    question, options
        The images, their label and folds, and how to look.
    on_message, on_progress
        Called with what could not be looked at, and with how many pictures are decoded.

    Raises
    ------
    MissingEmbeddingsError
        An encoder that was named lacks images of the cohorts.
    RunError
        Nothing is left to train on, or it cannot be split into folds.
    """
    looking = _Looking(session, session.study(question), options, on_message)
    looking.at_the_table()
    facts = looking.at_pictures(on_progress)
    looking.at_embeddings(models, facts)
    looking.at_metadata(facts)
    report = looking.report()
    store_findings(session.workspace, report.document())
    renew_catalog(session)
    return report


@dataclass(frozen=True, slots=True)
class _Probed:
    """One encoder's quick probes of the label.

    Parameters
    ----------
    encoder
        Name of the encoder.
    X
        Its rows of the training images, shape (n, features).
    rows
        Numbers of these images in the scene, shape (n,).
    by_patient, by_image
        Predictions on folds of patients, and on folds of images.
    score
        Score on folds of patients.
    """

    encoder: str
    X: np.ndarray = field(repr=False)
    rows: Codes = field(repr=False)
    by_patient: Predictions = field(repr=False)
    by_image: Predictions = field(repr=False)
    score: Score


class _Looking:
    """An audit under way.

    Parameters
    ----------
    session, study, options, on_message
        The workspace, the question with its images, how to look, and who hears of what could not
        be looked at.
    """

    def __init__(
        self, session: Session, study: Study, options: AuditOptions, on_message: OnMessage
    ) -> None:
        self.session, self.study, self.options = session, study, options
        self.on_message, self.start = on_message, time.perf_counter()
        self.scene = scene_of(study.cohorts, study.folds)
        self.findings: list[AuditFinding] = []
        self.scores: list[Score] = []
        self.notes: list[str] = []
        self.encoders: list[str] = []
        self.best: _Probed | None = None

    def note(self, text: str) -> None:
        """Keep a note, and say it."""
        self.notes.append(text)
        self.on_message(text)

    def at_the_table(self) -> None:
        """Look at what the table of images tells."""
        n_folds, task = self.study.folds.n_folds, self.study.question.task
        show_patients = self.options.show_patients
        self.findings += cheap_findings(self.scene, n_folds, task, show_patients=show_patients)

    def at_pictures(self, on_progress: OnProgress) -> list[PictureFacts | None]:
        """Decode each picture that no audit has decoded, and look for equal pixels."""
        files = self.study.cohorts.images.files
        if not files:
            self.note("the images are not here: pixels, sizes and marks are not looked at")
            return [None] * len(self.scene)
        parts = self.study.cohorts.parts.values()
        facts = facts_of_pictures(
            self.session.workspace,
            [files[number] for part in parts for number in part],
            self.scene.key,
            self.session.digests,
            on_progress,
        )
        n_absent = facts.count(None)
        if n_absent:
            self.note(f"{n_absent} pictures are not here or cannot be decoded; they are left out")
        pixels = [None if fact is None else fact.pixels for fact in facts]
        self.findings += identical(self.scene, pixels, "pixels", self.findings)
        return facts

    def at_embeddings(self, models: Sequence[str], facts: Sequence[PictureFacts | None]) -> None:
        """Look for near-duplicates, for what a split by image hides, and for wrong labels."""
        place = {image: row for row, image in enumerate(self.scene.image_id)}
        rows: dict[str, tuple[np.ndarray, Codes]] = {}
        for name, store in self._stores(models):
            parts = self.session.rows(self.study, store)
            numbers = [place[image] for part in parts for image in part.image_id]
            rows[name] = np.concatenate([part.X for part in parts]), np.array(numbers)
            self.encoders.append(f"{store.name}@{store.fingerprint}")
        if not rows:
            self.note(
                "no embeddings: near-duplicates, labels and what embeddings tell are not looked "
                "at; run `embedcache extract -m NAME`"
            )
            return
        self._at_near_duplicates(rows, facts)
        probed = [self._probe(name, *of_encoder) for name, of_encoder in rows.items()]
        self.best = max(probed, key=lambda of_encoder: of_encoder.score.value)
        for of_encoder in probed:
            by_image = score_of("label", of_encoder.encoder, of_encoder.by_image, split="images")
            self.scores += [of_encoder.score, by_image]
        best = self.best
        self.findings += inflation(best.encoder, best.by_patient, best.by_image)
        if best.score.low > best.score.chance:
            self.findings += likely_label_errors(best.by_patient, best.by_image)
        else:
            self.note(f"'{best.encoder}' does not tell the label; labels are not looked at")

    def _stores(self, models: Sequence[str]) -> Iterator[tuple[str, EmbeddingStore]]:
        """Yield the encoders that were named, or two that hold every image."""
        names = self.session.model_names(models)
        if ALL not in models:
            yield from ((name, self.session.find_store(name)) for name in names)
            return
        n_chosen = 0
        # A fine-tuned encoder may not be asked about the patients that it has seen, and random
        # weights tell brightness from brightness.
        published = [name for name in names if not name.startswith("run:")]
        trained = [name for name in published if not name.startswith(_RANDOM)]
        for name in sorted(trained or published, key=lambda name: name.startswith("pixels")):
            if n_chosen == N_ENCODERS:
                break
            store = self.session.find_store(name)
            try:
                self.session.rows(self.study, store)
            except (MissingEmbeddingsError, StoreCorruptError, StoreReadError) as error:
                self.note(f"'{name}' is left out: {error}")
                continue
            n_chosen += 1
            yield name, store
        if n_chosen == 1:
            self.note("one encoder only: near-duplicates are what it and the hash agree on")

    def _at_near_duplicates(
        self,
        rows: Mapping[str, tuple[np.ndarray, Codes]],
        facts: Sequence[PictureFacts | None],
    ) -> None:
        common = sorted(set.intersection(*(set(numbers.tolist()) for _, numbers in rows.values())))
        scene = self.scene.take(common)
        patient, label = _codes(scene.patient_id), _codes(scene.label)
        near, thresholds = {}, {}
        for name, (X, numbers) in rows.items():
            order = np.argsort(numbers)
            near[name] = neighbours(X[order[np.isin(numbers[order], common)]], patient, label)
            threshold = calibrate(near[name], len(rows))
            if self.options.threshold is not None:
                threshold = Threshold(self.options.threshold, np.inf, 0)
            thresholds[name] = threshold
            self.notes.append(f"near-duplicates by '{name}': {threshold}")
        self.findings += near_duplicates(scene, near, thresholds, [facts[row] for row in common])

    def _probe(self, name: str, X: np.ndarray, numbers: Codes) -> _Probed:
        """Return the quick probes of an encoder's training rows."""
        is_train = self.scene.fold[numbers] >= 0
        rows = numbers[is_train]
        features = fewer_features(X[is_train])
        classes = sorted({self.scene.label[row] for row in rows})
        y = np.searchsorted(classes, [self.scene.label[row] for row in rows])
        fold = self.scene.fold[rows]
        by_patient, by_image = (
            predictions(self.scene, rows, classes, y, out_of_fold(features, y, part))
            for part in (fold, image_folds(y, len(np.unique(fold))))
        )
        score = score_of("label", name, by_patient)
        return _Probed(name, features, rows, by_patient, by_image, score)

    def at_metadata(self, facts: Sequence[PictureFacts | None]) -> None:
        """Look at what tells the label without the picture, and how well embeddings tell that."""
        scene = self.scene.take(range(self.scene.n_train))
        known = self._facts(facts[: len(scene)])
        classes = sorted(set(scene.label))
        y, patient = _codes(scene.label), _codes(scene.patient_id)
        told = label_from_facts(known, y, scene.fold, patient)
        rows = np.arange(len(scene))
        for name, by_facts in told.items():
            certain = np.eye(len(classes))[by_facts.predicted]
            score = score_of("label", name, predictions(scene, rows, classes, y, certain))
            self.scores.append(replace(score, chance=by_facts.chance))
        if self.best is not None:
            best = self.best
            self.scores += [s for fact in known for s in _told_by(best, self.scene, fact)]
        reached = self.best.score.value if self.best else None
        self.findings += shortcuts(
            known, told, self.study.question.label, y, classes, patient, reached
        )

    def _facts(self, facts: Sequence[PictureFacts | None]) -> list[Fact]:
        """Return what is known of the training images: manifest columns, and measures."""
        cohorts = self.study.cohorts
        columns: dict[str, Sequence[str]] = {}
        for name in cohorts.images.table.column_names:
            cells = cohorts.column(name, cohorts.train)
            columns[name] = ["" if cell is None else str(cell) for cell in cells]
        return facts_of(columns | picture_columns(facts), self.study.question.label)

    def report(self) -> AuditReport:
        """Return what was found."""
        scene = self.scene
        return AuditReport(
            audit_id=f"audit-{new_id()}",
            question=self.study.question,
            encoders=tuple(self.encoders),
            n_images=len(scene),
            n_patients=len(set(scene.patient_id)),
            findings=tuple(sorted(self.findings, key=lambda f: SEVERITIES.index(f.severity))),
            scores=tuple(self.scores),
            notes=tuple(self.notes),
            created=utc_now(),
            seconds=round(time.perf_counter() - self.start, 3),
        )


def _codes(names: Sequence[str]) -> Codes:
    """Return each name's number among the different names, sorted."""
    return np.unique(np.array(names), return_inverse=True)[1].astype(np.int64)


def _told_by(probed: _Probed, scene: Scene, fact: Fact) -> list[Score]:
    """Return how well an encoder tells a fact of other patients; nothing where no two share one."""
    codes = fact.codes[probed.rows]
    patient = np.array([scene.patient_id[row] for row in probed.rows])
    shared = [c for c in np.unique(codes) if len(np.unique(patient[codes == c])) > 1]
    is_shared = np.isin(codes, shared)
    fold = scene.fold[probed.rows][is_shared]
    if len(shared) < 2 or len(np.unique(fold)) < 2:
        return []
    y, rows = np.searchsorted(shared, codes[is_shared]), probed.rows[is_shared]
    probability = out_of_fold(probed.X[is_shared], y, fold)
    values = [fact.values[code] for code in shared]
    predicted = predictions(scene, rows, values, y, probability)
    return [score_of(fact.name, probed.encoder, predicted)]
