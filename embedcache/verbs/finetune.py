"""`finetune`: the full-training regime, on the probes' folds, into the probes' tables."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.predictions import Predictions
from embedcache.encoders import registry
from embedcache.encoders.devices import check_device
from embedcache.encoders.kept import (
    Trained,
    check_not_trained_on,
    has_encoders,
    keep_encoders,
)
from embedcache.encoders.registry import Identified
from embedcache.errors import RunError
from embedcache.extract.report import Progress
from embedcache.files.cores import usable_cores
from embedcache.files.digests import DigestCache
from embedcache.files.durable import canonical_json, remove_folder, utc_now
from embedcache.files.locks import locked, marked
from embedcache.finetune.recipe import Recipe
from embedcache.runs import files as run_files
from embedcache.runs.record import Run, run_id_of
from embedcache.scoring.evaluate import evaluate
from embedcache.verbs import state
from embedcache.verbs.cohorts import CohortOptions
from embedcache.verbs.extract import ALL, ExtractOptions, identify_models, select_models
from embedcache.verbs.fold_jobs import fold_jobs, gather
from embedcache.verbs.probing import (
    DECISIVE,
    ProbeOptions,
    Question,
    RunOutcome,
    ask,
    rows_digest,
    stored_outcome,
)
from embedcache.workspace import Workspace

if TYPE_CHECKING:
    from embedcache.finetune.devices import Chosen
    from embedcache.finetune.jobs import Epoch, FoldResult, Step

PROTOCOL: Final = "finetune-1"
_DECISIVE: Final = (*DECISIVE, "torch", "torchvision", "timm", "lightning-fabric")
_MOST_WORKERS: Final = 16


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """How to fine-tune.

    Parameters
    ----------
    recipe
        Every number of the training; see `finetune.recipe.read_recipe`.
    regime
        'finetune', 'lora', 'head-only', 'lp-ft' or 'partial:N'.
    device, n_devices
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps', and how many of them.
    save
        Whether the trained encoders are kept, to be named as `run:ID`.
    weights, preprocess, encoder_file, offline
        As for `ExtractOptions`.
    workers
        Processes that read and change pictures; None: what suits the machine.
    n_resamples
        Of the patient bootstrap.
    """

    recipe: Recipe
    regime: str = "finetune"
    device: str = "auto"
    n_devices: int = 1
    save: bool = False
    weights: Path | None = None
    preprocess: str | None = None
    encoder_file: Path | None = None
    offline: bool = False
    workers: int | None = None
    n_resamples: int = 10_000


@dataclass(frozen=True, slots=True)
class Told:
    """Whom to tell what: see `finetune`."""

    on_message: Callable[[str], None] = field(default=lambda _: None)
    on_progress: Callable[[Progress], None] = field(default=lambda _: None)
    on_step: Callable[[Step], None] = field(default=lambda _: None)
    on_epoch: Callable[[Epoch], None] = field(default=lambda _: None)
    on_run: Callable[[RunOutcome], None] = field(default=lambda _: None)


def finetune(
    workspace: Workspace,
    models: Sequence[str],
    cohort_options: CohortOptions,
    options: FinetuneOptions,
    told: Told = Told(),
) -> list[RunOutcome]:
    """Fine-tune each model on every fold of the training cohort, and store the runs.

    A run that was killed goes on where it was; one that was made before is found again.

    Parameters
    ----------
    told
        `on_message`: what a reader of the scores must know. `on_progress`: pictures decoded.
        `on_step`, `on_epoch`: how far a fold is. `on_run`: each run as it is done.

    Raises
    ------
    LeakageError
        A training patient stands in an external cohort.
    RunError
        Another task than classification, or a loss that is no number.
    MissingExtraError
        The extra 'finetune' is not installed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `extract` does, before torch
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS adds in no one order
    from embedcache.finetune.devices import check_devices, choose_precision
    from embedcache.finetune.regimes import Regime

    if cohort_options.task != "classification":
        raise RunError("fine-tuning is for classes; leave out --task")
    Regime(options.regime)  # a typo costs nothing yet
    check_device(options.device)
    question = ask(workspace, cohort_options, ProbeOptions(n_resamples=options.n_resamples))
    for note in (*question.cohorts.notes, *question.folds.notes):
        told.on_message(note)
    device = check_devices(options.device, options.n_devices)
    recipe = replace(options.recipe, precision=choose_precision(options.recipe.precision, device))
    options = replace(options, recipe=recipe)
    outcomes = []
    for found in _identify(workspace, models, options):
        one = _Finetuning(question, options, found, told, on_cpu=device.type == "cpu")
        with marked(workspace.training):  # `gc` keeps off meanwhile
            outcomes.append(one.run())
        told.on_run(outcomes[-1])
    state.renew_catalog(workspace, question.cohorts.images)
    return outcomes


def _identify(
    workspace: Workspace, models: Sequence[str], options: FinetuneOptions
) -> list[Identified]:
    names = [name.partition("@")[0] for name in models]
    if ALL in names:
        every = select_models(workspace, names, offline=options.offline)
        names = [name for name in every if registry.find_spec(name).weights.kind != "none"]
    extract = ExtractOptions(
        weights=options.weights,
        preprocess=options.preprocess,
        encoder_file=options.encoder_file,
        offline=options.offline,
    )
    found = [
        one if one.fingerprint is not None else _drawn(one)
        for one in identify_models(workspace, names, extract, DigestCache(workspace.digests))
    ]
    for name in models:
        prefix = name.partition("@")[2]
        if not any(str(one.fingerprint).startswith(prefix) for one in found):
            raise RunError(f"the weights here are not those of '{name}'; pass theirs as --weights")
    return found


def _drawn(found: Identified) -> Identified:
    """Return random weights with their digest, which only drawing them tells."""
    return replace(found, weights_digest=registry.load(found, device="cpu").identity["weights"])


class _Finetuning:
    """One encoder's run."""

    def __init__(
        self,
        question: Question,
        options: FinetuneOptions,
        found: Identified,
        told: Told,
        *,
        on_cpu: bool,
    ) -> None:
        self.question, self.options, self.found, self.told = question, options, found, told
        self.on_cpu = on_cpu
        self.workspace = question.workspace
        self.name = found.spec.name

    def run(self) -> RunOutcome:
        start = time.perf_counter()
        self.material = gather(
            self.question,
            self.found,
            on_progress=self.told.on_progress,
            on_message=self.told.on_message,
        )
        n_skipped = self.material.n_skipped
        everyone = [patient for one in self.material.cohorts for patient in one.patient_id]
        check_not_trained_on(self.workspace, self.found.spec, everyone)
        settings, data, versions = self._decisive()
        decisive = [self.found.fingerprint, settings, data, versions]
        run_id = run_id_of("finetune", self.name, decisive)
        training = self.workspace.training / run_id
        self.workspace.training.mkdir(parents=True, exist_ok=True)
        waiting = f"another process is training {run_id}; waiting for it to end"
        # Beside the folder, which goes away while others may be waiting.
        lock = training.with_name(f".lock-{run_id}")
        with locked(lock, partial(self.told.on_message, waiting)):
            folder = Path(self.workspace.runs / run_id)
            is_there = (folder / run_files.RECORD).exists()
            is_kept = has_encoders(self.workspace, run_id)
            if not is_there or (self.options.save and not is_kept):
                results = self._train(run_id, training)
                notes = [*self.question.cohorts.notes, *self.question.folds.notes]
                if n_skipped:
                    notes.append(f"{n_skipped} images left out: they could not be read")
                if self.options.recipe.drop_path and not results[0].cost["blocks_with_drop_path"]:
                    notes.append("drop_path does nothing: the network has no branches to drop")
                predictions = self._predictions(results)
                if is_there:
                    self._check_same(folder, predictions)
                run = Run(
                    run_id=run_id,
                    kind="finetune",
                    encoder=self.name,
                    fingerprint=str(self.found.fingerprint),
                    settings=settings,
                    data={**data, "manifest": self.question.snapshot},
                    results={**_told_by(results), "notes": notes, "n_skipped": n_skipped},
                    versions=versions,
                    created=utc_now(),
                    seconds=round(time.perf_counter() - start, 3),
                )
                self._publish(run, predictions, training, results)
            if training.exists():
                remove_folder(training)
        return replace(stored_outcome(folder, n_skipped), was_cached=is_there)

    def _decisive(self) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Return what decides the result: settings, data, versions."""
        cohorts, asked = self.question.cohorts, self.question.cohort_options
        settings = {
            "protocol": PROTOCOL,
            "regime": self.options.regime,
            "recipe": asdict(self.options.recipe),
            "label": asked.label,
            "task": asked.task,
            "train_cohort": cohorts.train_cohort,
            "external": list(cohorts.external),
            "external_by": "folds",
            "where": asked.where,
            "class_map": asked.class_map,
            "classes": cohorts.class_map,
            "n_folds": self.question.folds.n_folds,
            "seed": asked.seed,
            "n_resamples": self.options.n_resamples,
        }
        digests = [rows_digest(one) for one in self.material.cohorts]
        keys = [self.material.keys(one) for one in self.material.cohorts]
        data = {
            "folds_id": self.question.folds.folds_id,
            "train": digests[0],
            "external": digests[1:],
            "pictures": hashlib.sha256(canonical_json(keys)).hexdigest(),
        }
        names = [*_DECISIVE, *(["peft"] if self.options.regime == "lora" else [])]
        return settings, data, {name: version(name) for name in names}

    # Training

    def _train(self, run_id: str, training: Path) -> list[FoldResult]:
        """Train every fold that is not trained yet."""
        from embedcache.finetune import train
        from embedcache.finetune.devices import on_devices
        from embedcache.finetune.jobs import finished
        from embedcache.finetune.regimes import Regime

        jobs = fold_jobs(
            self.material,
            Regime(self.options.regime),
            self.options.recipe,
            training=training,
            logs=self.workspace.logs / run_id,
            workers=self._workers(),
            probe_options=ProbeOptions(n_resamples=self.options.n_resamples),
        )
        todo = [job for job in jobs if finished(job.folder) is None]
        if todo:
            with on_devices(
                train.train_folds,
                (todo,),
                device=self.options.device,
                n_devices=self.options.n_devices,
                precision=cast("Chosen", self.options.recipe.precision),
                encoder_file=self.options.encoder_file,
            ) as fabric:
                for job in todo:
                    train.train_fold(fabric, job, self.told.on_step, self.told.on_epoch)
        results = [one for job in jobs if (one := finished(job.folder)) is not None]
        assert len(results) == len(jobs)
        return results

    def _workers(self) -> int:
        """Return how many processes read: none beside a CPU.

        There a picture takes little of its step (benchmarks/bench_finetune.py), and a fork makes
        the kernel copy every page of activations that the next step touches, which takes longer.
        """
        if self.options.workers is not None or self.on_cpu:
            return self.options.workers or 0
        cores = usable_cores() // self.options.n_devices
        return min(_MOST_WORKERS, max(1, cores - 1))

    # Results

    def _predictions(self, results: Sequence[FoldResult]) -> list[Predictions]:
        """Return out-of-fold predictions, and for external cohorts the mean of the folds'."""
        train, *external = self.material.cohorts
        fold = self.material.fold
        inside = np.full((len(train), len(self.material.classes)), np.nan)
        for one in results:
            inside[fold == one.fold] = one.probability[0]
        found = [self._of(train, fold, inside, "in-domain")]
        for number, cohort in enumerate(external, 1):
            mean = np.mean([one.probability[number] for one in results], axis=0)
            found.append(self._of(cohort, np.full(len(cohort), -1), mean, "external"))
        return found

    def _check_same(self, folder: Path, predictions: Sequence[Predictions]) -> None:
        """Check that a training that was done again, for its weights, gave what was published.

        Raises
        ------
        RunError
            It did not, as on another device.
        """
        pairs = zip(run_files.read_predictions(folder), predictions, strict=True)
        if any((one.probability != two.probability).any() for one, two in pairs):
            raise RunError(
                f"trained again, {folder.name} predicts other values than were published, as on "
                "another device; its weights are not kept: train with --save into another --store"
            )

    def _of(self, rows: LabelledEmbeddings, fold: Any, probability: Any, role: Any) -> Predictions:
        return Predictions(
            role=role,
            classes=self.material.classes,
            image_id=rows.image_id,
            patient_id=rows.patient_id,
            cohort=rows.cohort,
            label=rows.label,
            fold=fold,
            probability=probability,
        )

    def _publish(
        self,
        run: Run,
        predictions: Sequence[Predictions],
        training: Path,
        results: Sequence[FoldResult],
    ) -> None:
        from embedcache.finetune.jobs import ENCODER

        if self.options.save:
            patients, fold = np.array(self.material.cohorts[0].patient_id), self.material.fold
            trained = [
                Trained(
                    one.fold,
                    training / f"fold-{one.fold}" / ENCODER,
                    tuple(np.unique(patients[fold != one.fold]).tolist()),
                )
                for one in results
            ]
            keep_encoders(self.workspace, run.run_id, self.found.spec, trained)
        draws = {"n_resamples": self.options.n_resamples, "seed": run.settings["seed"]}
        run_files.write_run(self.workspace.runs, run, predictions, evaluate(predictions, **draws))


def _told_by(results: Sequence[FoldResult]) -> dict[str, Any]:
    """Return what a run's record says of its folds."""
    return {
        "best_epoch": [one.best_epoch for one in results],
        "validation_macro_f1": [one.epochs[one.best_epoch - 1].macro_f1 for one in results],
        "epochs": [[asdict(epoch) for epoch in one.epochs] for one in results],
        "cost": [one.cost for one in results],
    }
