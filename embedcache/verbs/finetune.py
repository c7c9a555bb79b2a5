"""`finetune`: the full-training regime, on the probes' folds, into the probes' tables."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Final, cast

import numpy as np

from embedcache.data.predictions import Predictions
from embedcache.data.question import Question
from embedcache.encoders import registry
from embedcache.encoders.devices import check_device
from embedcache.encoders.kept import (
    Seen,
    Trained,
    check_not_trained_on,
    has_encoders,
    keep_encoders,
)
from embedcache.encoders.registry import Identified
from embedcache.encoders.select import ALL, identify_models, select_models
from embedcache.errors import MissingEmbeddingsError, RunError
from embedcache.extract.pictures import hold_pixels
from embedcache.files.cores import usable_cores
from embedcache.files.durable import canonical_json, make_folder, remove_folder
from embedcache.files.locks import marked
from embedcache.finetune.answers import answers_of, fold_answers_of, results_of
from embedcache.finetune.material import Material, fold_jobs, gather
from embedcache.probes.logistic import LogisticPath, fit_sweep
from embedcache.runs.methods import FinetuneMethod, ProbeMethod
from embedcache.runs.once import Computed, once
from embedcache.runs.outcome import RunOutcome
from embedcache.runs.request import RunRequest
from embedcache.scoring.evaluate import SCORES
from embedcache.verbs.audited import AuditedRuns
from embedcache.verbs.catalog import renew_catalog
from embedcache.verbs.finetune_options import Callbacks, FinetuneOptions
from embedcache.verbs.probe_run import DECISIVE, ProbeOptions, probe_store, run_data, versions_of
from embedcache.verbs.repeats import repeated_studies
from embedcache.verbs.session import Session, Study

if TYPE_CHECKING:
    from embedcache.encoders.choices import Precision
    from embedcache.finetune.jobs import FoldResult

PROTOCOL: Final = "finetune-1"
_DECISIVE: Final = (*DECISIVE, "torch", "torchvision", "timm", "lightning-fabric")
_MOST_WORKERS: Final = 16


def finetune(
    session: Session,
    models: Sequence[str],
    question: Question,
    options: FinetuneOptions,
    callbacks: Callbacks | None = None,
) -> AuditedRuns:
    """Fine-tune each model on every fold of the training cohort, and store the runs.

    A run that was killed goes on where it was; one that was made before is found again.

    Parameters
    ----------
    session, models
        The workspace, and names of encoders; 'all' for every one whose weights are here.
    question, options, callbacks
        What is asked, how it is answered, and functions called while it runs; None for none.

    Raises
    ------
    LeakageError
        A training patient stands in an external cohort.
    RunError
        Another task than classification, or a loss that is no number.
    MissingExtraError
        The extra 'finetune' is not installed.
    """
    callbacks = callbacks or Callbacks()
    _set_up_libraries()
    from embedcache.finetune.fabric import check_devices, choose_precision

    _check_request(question, options)
    studies = repeated_studies(session, question, options.repeats)
    for note in dict.fromkeys(note for study in studies for note in study.notes):
        callbacks.on_message(note)
    device = check_devices(options.device, options.n_devices)
    precision = choose_precision(options.recipe.precision, device)
    options = replace(options, recipe=replace(options.recipe, precision=precision))
    outcomes = []
    for encoder, study in product(_trainable_encoders(session, models, options), studies):
        with marked(session.workspace.training):  # `gc` keeps off meanwhile
            material = _gather(session, study, encoder, callbacks)
            run = _Finetuning(session, study, material, options, callbacks, device.type == "cpu")
            outcomes.append(run.outcome())
        callbacks.on_run(outcomes[-1])
    renew_catalog(session)
    findings = dict.fromkeys(finding for study in studies for finding in study.findings)
    return AuditedRuns(tuple(outcomes), tuple(findings))


def _set_up_libraries() -> None:
    """Set what OpenMP and cuBLAS read once, when torch is loaded; what a user has set stays."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `extract` does
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # or cuBLAS adds in no one order


def _check_request(question: Question, options: FinetuneOptions) -> None:
    """Refuse what cannot be trained while a typo costs nothing yet."""
    from embedcache.finetune.regimes import Regime

    if question.task != "classification":
        raise RunError(f"fine-tuning is for one class an image, not {question.task}")
    Regime(options.regime)
    check_device(options.device)


def _trainable_encoders(
    session: Session, models: Sequence[str], options: FinetuneOptions
) -> list[Identified]:
    names = [name.partition("@")[0] for name in models]
    documents = session.encoder_documents.values()
    if ALL in names:
        every = select_models(names, documents, offline=options.encoders.offline)
        names = [name for name in every if registry.find_spec(name).weights.kind != "none"]
    encoders = [
        encoder if encoder.fingerprint is not None else _drawn(encoder)
        for encoder in identify_models(
            session.workspace, names, options.encoders, session.digests, documents
        )
    ]
    for name in models:
        prefix = name.partition("@")[2]
        if not any(str(encoder.fingerprint).startswith(prefix) for encoder in encoders):
            raise RunError(f"the weights here are not those of '{name}'; pass theirs as --weights")
    return encoders


def _drawn(encoder: Identified) -> Identified:
    """Return random weights with their digest, which only drawing them tells."""
    weights = registry.load(encoder, device="cpu").identity["weights"]
    return replace(encoder, weights_digest=weights)


def _gather(session: Session, study: Study, encoder: Identified, callbacks: Callbacks) -> Material:
    """Decode and fit every image of a study that is not held yet."""
    cohorts = study.cohorts
    files = cohorts.images.files
    if not files:
        raise MissingEmbeddingsError(
            f"{session.workspace.manifest}: no such manifest; fine-tuning reads the images "
            "themselves, so run it where they are"
        )
    numbers = sorted({number for part in cohorts.parts.values() for number in part})
    pictures, _ = hold_pixels(
        session.workspace,
        encoder.spec.preprocess,
        [files[number] for number in numbers],
        on_progress=callbacks.on_progress,
        on_message=callbacks.on_message,
    )
    material = gather(cohorts, study.folds, encoder, pictures)
    check_not_trained_on(
        session.workspace,
        encoder.spec,
        [patient for cohort in material.cohorts for patient in cohort.patient_id],
        [image for cohort in material.cohorts for image in cohort.image_id],
        [key for cohort in material.cohorts for key in material.keys(cohort)],
    )
    return material


class _Finetuning:
    """The run of one encoder."""

    def __init__(
        self,
        session: Session,
        study: Study,
        material: Material,
        options: FinetuneOptions,
        callbacks: Callbacks,
        is_on_cpu: bool,
    ) -> None:
        self.session, self.study, self.material = session, study, material
        self.options, self.callbacks, self.is_on_cpu = options, callbacks, is_on_cpu
        self.request = self._request()
        self.training = session.workspace.training / self.request.run_id

    def _request(self) -> RunRequest:
        keys = [self.material.keys(cohort) for cohort in self.material.cohorts]
        pictures = hashlib.sha256(canonical_json(keys)).hexdigest()
        names = [*_DECISIVE, *(["peft"] if self.options.regime == "lora" else [])]
        return RunRequest(
            kind="finetune",
            encoder=self.material.encoder.spec.name,
            fingerprint=str(self.material.encoder.fingerprint),
            question=self.study.question,
            method=FinetuneMethod(self.options.regime, asdict(self.options.recipe)),
            data=replace(run_data(self.study, self.material.cohorts), pictures=pictures),
            constants={"protocol": PROTOCOL, "scores": SCORES},
            n_resamples=self.options.n_resamples,
            versions=versions_of(names),
        )

    def outcome(self) -> RunOutcome:
        """Return the run: found again, or trained now."""
        run_id = self.request.run_id
        waiting = f"another process is training {run_id}; waiting for it to end"
        on_wait = partial(self.callbacks.on_message, waiting)
        outcome = once(
            self.session.runs,
            self.request,
            self._compute,
            n_skipped=self.material.n_skipped,
            notes=self.study.notes,
            on_wait=on_wait,
        )
        if self.options.save and not has_encoders(self.session.workspace, run_id):
            with self.session.runs.lock(run_id, on_wait):
                self._train_again(outcome)
        # The run is stored: nothing is left to go on from.
        if self.training.exists():
            remove_folder(self.training)
        return outcome

    def _compute(self) -> Computed:
        results = self._train()
        if self.options.save:
            self._keep(results)
        notes = []
        if self.options.recipe.drop_path and not results[0].cost["blocks_with_drop_path"]:
            notes.append("drop_path does nothing: the network has no branches to drop")
        return Computed(
            answers=answers_of(self.material, results),
            fold_answers=fold_answers_of(self.material, results),
            results=results_of(results),
            notes=notes,
        )

    def _train_again(self, outcome: RunOutcome) -> None:
        """Train once more, for the weights of a run that was published without them.

        Raises
        ------
        RunError
            The training gave other predictions, as on another device.
        """
        results = self._train()
        pairs = zip(outcome.answers, answers_of(self.material, results), strict=True)
        published = [(cast("Predictions", first), second) for first, second in pairs]
        if any((first.probability != second.probability).any() for first, second in published):
            raise RunError(
                f"trained again, {outcome.run_id} predicts other values than were published, as on "
                "another device; its weights are not kept: train with --save into another --store"
            )
        self._keep(results)

    def _train(self) -> list[FoldResult]:
        """Train every fold that is not trained yet."""
        from embedcache.finetune import train
        from embedcache.finetune.fold_files import FoldFiles
        from embedcache.finetune.processes import on_devices
        from embedcache.finetune.regimes import Regime

        make_folder(self.training.parent)
        regime = Regime(self.options.regime)
        jobs = fold_jobs(
            self.material,
            regime,
            self.options.recipe,
            self._probes() if regime.starts_at_probe else {},
            training=self.training,
            logs=self.session.workspace.logs / self.request.run_id,
            workers=self._workers(),
        )
        todo = [job for job in jobs if FoldFiles(job.folder).read_result() is None]
        if todo:
            with on_devices(
                train.train_folds,
                (todo,),
                device=self.options.device,
                n_devices=self.options.n_devices,
                precision=cast("Precision", self.options.recipe.precision),
                encoder_file=self.options.encoders.encoder_file,
            ) as fabric:
                for job in todo:
                    train.train_fold(fabric, job, self.callbacks.on_step, self.callbacks.on_epoch)
        results = [r for job in jobs if (r := FoldFiles(job.folder).read_result()) is not None]
        assert len(results) == len(jobs)
        return results

    def _workers(self) -> int:
        """Return how many processes read: none beside a CPU.

        There a picture takes little of its step (benchmarks/bench_finetune.py), and a fork makes
        the kernel copy every page of activations that the next step touches, which takes longer.
        """
        if self.options.workers is not None or self.is_on_cpu:
            return self.options.workers or 0
        cores = usable_cores() // self.options.n_devices
        return min(_MOST_WORKERS, max(1, cores - 1))

    def _probes(self) -> dict[int, LogisticPath]:
        """Return the probe of each fold's training part, with the C that the probe's run chose.

        Fitted without the patients that choose the epoch: or the first epoch would have seen them.

        Raises
        ------
        MissingEmbeddingsError
            The encoder's embeddings are not cached.
        """
        encoder, train = self.material.encoder, self.material.cohorts[0]
        name = encoder.spec.name
        store = self.session.find_store(f"{name}@{str(encoder.fingerprint)[:12]}")
        options = ProbeOptions(n_resamples=self.options.n_resamples)
        method = ProbeMethod(seed=self.study.question.seed)  # as `probe` has it: the run is shared
        probe = probe_store(self.session, self.study, store, method, options)
        rows = self.session.rows(self.study, store)[0]
        place = {image: number for number, image in enumerate(rows.image_id)}
        absent = [image for image in train.image_id if image not in place]
        if absent:
            raise MissingEmbeddingsError(
                f"{len(absent)} training images have no '{name}' embedding, first '{absent[0]}'; "
                f"run `embedcache extract --model {name}`"
            )
        order = np.array([place[image] for image in train.image_id])
        y = np.searchsorted(self.material.classes, np.array(rows.label)).astype(np.int64)
        splits = self.material.splits(self.options.recipe.validation)
        strengths = probe.record.fold_settings["C"]
        problems = [
            (order[split.train], [C]) for split, C in zip(splits.values(), strengths, strict=True)
        ]
        paths = fit_sweep(rows.X, y, len(self.material.classes), problems)
        return dict(zip(splits, paths, strict=True))

    def _keep(self, results: Sequence[FoldResult]) -> None:
        """Keep the trained encoders, and say what moved or chose their weights."""
        from embedcache.finetune.fold_files import FoldFiles

        train, fold = self.material.cohorts[0], self.material.fold
        patients, keys = np.array(train.patient_id), np.array(self.material.keys(train))
        trained = [
            Trained(
                result.fold,
                FoldFiles(self.training / f"fold-{result.fold}").encoder,
                Seen(
                    frozenset(patients[fold != result.fold].tolist()),
                    frozenset(keys[fold != result.fold].tolist()),
                ),
            )
            for result in results
        ]
        run_id, spec = self.request.run_id, self.material.encoder.spec
        keep_encoders(self.session.workspace, run_id, spec, trained)
