"""The front door: a manifest, its store, and every verb of the command line as a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcache.runs.methods import CurveMethod, ExternalBy, ProbeMethod, Rule
from embedcache.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    import pyarrow as pa

    from embedcache.catalog.query import QueryRows
    from embedcache.data.embeddings import LabelledEmbeddings
    from embedcache.data.folds import FoldSize, FoldTable
    from embedcache.data.question import Question
    from embedcache.data.task_names import TaskName
    from embedcache.encoders.choices import PrecisionChoice
    from embedcache.encoders.select import EncoderOptions
    from embedcache.extract.report import PassReport, Progress
    from embedcache.files.backend import Location
    from embedcache.runs.outcome import RunOutcome, RunOutcomes
    from embedcache.scoring.estimates import Level, Scoring
    from embedcache.verbs.compare import CompareReport
    from embedcache.verbs.extract import Plan
    from embedcache.verbs.finetune import Callbacks
    from embedcache.verbs.gc import GcReport
    from embedcache.verbs.manifest import CheckReport
    from embedcache.verbs.probe import ProbeReport
    from embedcache.verbs.session import Session
    from embedcache.verbs.status import Status
    from embedcache.verbs.verify import VerifyReport

Names = str | Sequence[str]  # a text is one name
PathLike = Path | str
OnMessage = Callable[[str], None]


def _quiet(_: object) -> None:
    """Do nothing: nobody listens."""


class Project:
    """A manifest of images and the store that goes with it.

    Every method is a verb of the command line, which is a thin skin over this class. Where several
    names may be given, a text is one name.

    Parameters
    ----------
    workspace
        Where things are; `embedcache.open` finds it from a path.

    Examples
    --------
    >>> project = embedcache.open("data_manifest.csv")  # doctest: +SKIP
    >>> project.extract("efficientnet-lite0")  # doctest: +SKIP
    >>> rows = project.embeddings("efficientnet-lite0", where="cohort = 'spain'")  # doctest: +SKIP
    >>> project.probe("all").to_pandas()  # doctest: +SKIP
    >>> project.sql("SELECT label, count(*) FROM images GROUP BY label")  # doctest: +SKIP
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def __repr__(self) -> str:
        return f"Project(manifest={self.workspace.manifest}, store={self.workspace.store})"

    def _session(self) -> Session:
        # Verbs are imported where they are called: a query pays for no encoder and no probe.
        from embedcache.verbs.session import Session

        return Session(self.workspace)

    # Images and embeddings

    def images(self) -> pa.Table:
        """Return one row an image: every manifest column, and `sha256` of its bytes."""
        return self._session().images.table

    def check_manifest(self) -> CheckReport:
        """Check the manifest and every image it names: there, readable, unchanged, and no leak.

        Raises
        ------
        ManifestError
            The manifest itself cannot be read.
        """
        from embedcache.verbs.manifest import check

        return check(self._session())

    def plan(
        self,
        models: Names,
        *,
        weights: PathLike | None = None,
        preprocess: str | None = None,
        precision: PrecisionChoice = "auto",
        encoder_file: PathLike | None = None,
        offline: bool = False,
        shard: tuple[int, int] | None = None,
    ) -> list[Plan]:
        """Return what `extract` would do; encodes and stores nothing.

        Parameters
        ----------
        models, weights, preprocess, precision, encoder_file, offline, shard
            See `extract`.
        """
        from embedcache.verbs.extract import ExtractOptions, plan

        encoders = _encoders(weights, preprocess, precision, encoder_file, offline=offline)
        return plan(self._session(), _names(models), ExtractOptions(encoders, shard=shard))

    def extract(
        self,
        models: Names,
        *,
        device: str = "auto",
        weights: PathLike | None = None,
        preprocess: str | None = None,
        precision: PrecisionChoice = "auto",
        encoder_file: PathLike | None = None,
        offline: bool = False,
        batch_size: int | None = None,
        workers: int | None = None,
        fail_fast: bool = False,
        retry_failed: bool = False,
        shard: tuple[int, int] | None = None,
        on_progress: Callable[[Progress], None] = _quiet,
        on_message: OnMessage = _quiet,
    ) -> PassReport:
        """Encode every image that a model's store lacks, each image read and decoded once.

        Parameters
        ----------
        models
            Names of encoders; 'all' for every registered one whose weights are here.
        device
            'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
        weights
            Weights file to use instead of the registered one, for one model only.
        preprocess
            'squash', 'crop', 'pad-square' or 'longest-side' instead of the encoders' own way of
            fitting pictures; part of the fingerprint.
        precision
            'fp32' (TF32 off), 'bf16' or 'fp16', part of the fingerprint; 'auto' is 'fp32'.
        encoder_file
            Python file that defines encoders.
        offline
            Whether the hub is never asked.
        batch_size
            Number of images a batch; None for what suits the encoder.
        workers
            Number of threads that read and decode; None for what suits the machine.
        fail_fast
            Whether the first image that fails ends the pass.
        retry_failed
            Whether images that failed before are tried again.
        shard
            (i, n): only every n-th image, starting with the i-th, from 1; None for all.
        on_progress, on_message
            Called with how far the pass is, and with what else a user should know.

        Raises
        ------
        UnknownEncoderError, EncoderWeightsError, DeviceError
            The encoder cannot be loaded.
        StoreWriteError
            The disk refused; what was committed before is safe.
        """
        from embedcache.verbs.extract import ExtractOptions, extract

        options = ExtractOptions(
            _encoders(weights, preprocess, precision, encoder_file, offline=offline),
            device=device,
            batch_size=batch_size,
            workers=workers,
            fail_fast=fail_fast,
            retry_failed=retry_failed,
            shard=shard,
        )
        return extract(
            self._session(),
            _names(models),
            options,
            on_progress=on_progress,
            on_message=on_message,
        )

    def embeddings(
        self, model: str, *, where: str | None = None, label: str = "label"
    ) -> LabelledEmbeddings:
        """Return one model's rows, in manifest order; images recorded as failed are left out.

        Parameters
        ----------
        model
            `name`, or `name@fingerprint` where the store holds several.
        where
            SQL predicate over manifest columns; None for all images.
        label
            Manifest column to return as label.

        Raises
        ------
        MissingEmbeddingsError
            The store lacks images that were never tried.
        StoreCorruptError
            Stored bytes do not match their checksum.
        """
        return self._session().embeddings(model, where=where, label=label)

    def export(
        self,
        model: str,
        file: PathLike,
        *,
        kind: str | None = None,
        where: str | None = None,
        label: str = "label",
    ) -> list[Path]:
        """Write one model's rows to a file of their own and return the files written.

        Parameters
        ----------
        model, where, label
            See `embeddings`.
        file
            File to write.
        kind
            'parquet', 'npy' or 'safetensors'; None for what the file's suffix says.
        """
        from embedcache.catalog.export import write_embeddings

        rows = self.embeddings(model, where=where, label=label)
        return write_embeddings(rows, Path(file), kind)

    def sql(self, query: str) -> pa.Table:
        """Return the result of a SELECT over the views of docs/sql.md.

        Raises
        ------
        CatalogError
            The statement is wrong, or would write.
        """
        from embedcache.verbs.sql import sql

        return sql(self.workspace, query)

    def sql_rows(self, query: str) -> QueryRows:
        """Return the result of a SELECT as column names and plain values, in less time than `sql`.

        Raises
        ------
        CatalogError
            The statement is wrong, or would write.
        """
        from embedcache.verbs.sql import sql_rows

        return sql_rows(self.workspace, query)

    # Runs

    def models(self, models: Names = "all") -> list[str]:
        """Return the models that the store holds embeddings of, as `probe` takes them.

        Parameters
        ----------
        models
            Names of encoders; 'all' for every fingerprint that the store holds.
        """
        return self._session().model_names(_names(models))

    def folds(
        self,
        *,
        label: str = "label",
        task: TaskName = "classification",
        train_cohort: str | None = None,
        external: Names | None = None,
        where: str | None = None,
        class_map: PathLike | None = None,
        folds: int | PathLike = 5,
        seed: int = 0,
    ) -> tuple[FoldTable, list[FoldSize]]:
        """Return the patient folds of the training cohort, and what each of them tests.

        They are assigned and stored at first use.

        Parameters
        ----------
        label, task, train_cohort, external, where, class_map, folds, seed
            See `probe`.
        """
        from embedcache.verbs.folds import folds as find_folds

        question = _question(label, task, train_cohort, external, where, class_map, folds, seed)
        return find_folds(self._session(), question)

    def probe(
        self,
        models: Names,
        *,
        label: str = "label",
        task: TaskName = "classification",
        train_cohort: str | None = None,
        external: Names | None = None,
        where: str | None = None,
        class_map: PathLike | None = None,
        folds: int | PathLike = 5,
        seed: int = 0,
        probe: str = "logistic",
        protocol: str = "default",
        rule: Rule = "tie",
        external_by: ExternalBy = "refit",
        grid: Sequence[float] | None = None,
        controls: bool = False,
        n_resamples: int = 10_000,
        n_threads: int | None = None,
        on_message: OnMessage = _quiet,
        on_run: Callable[[RunOutcome], None] = _quiet,
    ) -> ProbeReport:
        """Fit a probe on each model's embeddings, and store predictions and scores.

        Parameters
        ----------
        models
            Names of encoders, `name` or `name@fingerprint`; 'all' for every one the store holds.
        label
            Manifest column that holds the class, the number, or the labels.
        task
            Kind of label: 'classification', 'regression' or 'multilabel'.
        train_cohort
            Name of the cohort that trains; None for the one with most patients.
        external
            Names of the cohorts that only test; None for every other one that shares a class with
            the training cohort.
        where
            SQL predicate over manifest columns that holds for every image; None for all images.
        class_map
            CSV file (label, class), or name of a built-in map; labels it lacks are left out.
        folds
            Number of patient folds, or a CSV file (patient_id, fold).
        seed
            Seed of folds, of bootstrap, and of what a protocol draws at random.
        probe
            Name of a probe family; see docs/probes.md.
        protocol
            Name of a protocol; see docs/protocol.md.
        rule
            Whether a smoother probe wins a 'tie', or within one standard error ('one-se').
        external_by
            Predictor of external cohorts: one 'refit' on all training patients, or the mean of the
            probes of the 'folds'.
        grid
            Values of the probe's setting to choose from, ascending; None for the usual ones.
        controls
            Whether majority, metadata and shuffled labels are probed too, and encoders compared.
        n_resamples
            Number of resamples of the patient bootstrap.
        n_threads
            Number of threads to fit with; None for one a core. It decides no result.
        on_message, on_run
            Called with what a reader of the scores must know, and with each run as it is done.

        Raises
        ------
        MissingEmbeddingsError
            A model lacks images of the cohorts.
        LeakageError
            A training patient stands in an external cohort.
        """
        from embedcache.verbs.probe import ProbeOptions
        from embedcache.verbs.probe import probe as probe_models

        values = None if grid is None else tuple(grid)
        method = ProbeMethod(probe, protocol, rule, external_by, values, seed)
        question = _question(label, task, train_cohort, external, where, class_map, folds, seed)
        return probe_models(
            self._session(),
            _names(models),
            question,
            method,
            ProbeOptions(n_resamples, n_threads, controls),
            on_message=on_message,
            on_run=on_run,
        )

    def learning_curves(
        self,
        models: Names,
        *,
        sizes: Sequence[int] | None = None,
        n_draws: int = 10,
        label: str = "label",
        task: TaskName = "classification",
        train_cohort: str | None = None,
        where: str | None = None,
        class_map: PathLike | None = None,
        folds: int | PathLike = 5,
        seed: int = 0,
        n_threads: int | None = None,
        on_run: Callable[[RunOutcome], None] = _quiet,
    ) -> RunOutcomes:
        """Score probes of 1, 2, 4, ... training patients, and store the curves.

        Parameters
        ----------
        models, label, task, train_cohort, where, class_map, folds, seed, n_threads, on_run
            See `probe`.
        sizes
            Numbers of patients; None for 1, 2, 4, ... All of them come last in any case.
        n_draws
            Number of orders in which patients are taken; the same for all models.
        """
        from embedcache.verbs.learning_curves import CurveOptions, learning_curves

        question = _question(label, task, train_cohort, None, where, class_map, folds, seed)
        return learning_curves(
            self._session(),
            _names(models),
            question,
            CurveMethod(None if sizes is None else tuple(sizes), n_draws),
            CurveOptions(n_threads),
            on_run=on_run,
        )

    def finetune(
        self,
        models: Names,
        *,
        regime: str = "finetune",
        recipe: PathLike | None = None,
        changes: Mapping[str, Any] | None = None,
        label: str = "label",
        train_cohort: str | None = None,
        external: Names | None = None,
        where: str | None = None,
        class_map: PathLike | None = None,
        folds: int | PathLike = 5,
        seed: int = 0,
        device: str = "auto",
        n_devices: int = 1,
        save: bool = False,
        weights: PathLike | None = None,
        preprocess: str | None = None,
        encoder_file: PathLike | None = None,
        offline: bool = False,
        workers: int | None = None,
        n_resamples: int = 10_000,
        callbacks: Callbacks | None = None,
    ) -> RunOutcomes:
        """Train encoder and head on each fold, and store predictions and scores as probes do.

        Parameters
        ----------
        models
            Names of encoders; 'all' for every registered one whose weights are here.
        regime
            'finetune', 'lora', 'head-only', 'lp-ft' or 'partial:N'.
        recipe
            TOML file of recipe keys; see `finetune/recipe.toml`. None for the defaults.
        changes
            Single recipe keys and their values; they come last.
        label, train_cohort, external, where, class_map, folds, seed, n_resamples
            See `probe`.
        device, weights, preprocess, encoder_file, offline
            See `extract`.
        n_devices
            Number of devices, one process each.
        save
            Whether the trained encoders are kept, to be named as `run:ID`.
        workers
            Number of processes that read and change pictures; None for what suits the machine.
        callbacks
            Functions called while it runs.

        Raises
        ------
        LeakageError
            A training patient stands in an external cohort.
        RunError
            A recipe key or regime that is none, or a loss that is no number.
        """
        from embedcache.finetune.recipe import read_recipe
        from embedcache.verbs.finetune import Callbacks, FinetuneOptions
        from embedcache.verbs.finetune import finetune as finetune_models

        question = _question(
            label, "classification", train_cohort, external, where, class_map, folds, seed
        )
        options = FinetuneOptions(
            recipe=read_recipe(_path(recipe), changes),
            regime=regime,
            encoders=_encoders(weights, preprocess, "auto", encoder_file, offline=offline),
            device=device,
            n_devices=n_devices,
            save=save,
            workers=workers,
            n_resamples=n_resamples,
        )
        return finetune_models(
            self._session(),
            _names(models),
            question,
            options,
            callbacks or Callbacks(),
        )

    def zeroshot(
        self,
        models: Names,
        *,
        prompts: str = "fetal-planes",
        label: str = "label",
        cohorts: Names | None = None,
        where: str | None = None,
        seed: int = 0,
        n_resamples: int = 10_000,
        weights: PathLike | None = None,
        encoder_file: PathLike | None = None,
        device: str = "auto",
        offline: bool = False,
        on_message: OnMessage = _quiet,
        on_run: Callable[[RunOutcome], None] = _quiet,
    ) -> RunOutcomes:
        """Classify cached images by text prompts, and store predictions and scores.

        Parameters
        ----------
        models
            Names of encoders that read as well: fetalclip, or any open_clip:ARCH/TAG; 'all' for
            every such one the store holds.
        prompts
            Name of a built-in prompt set, or a YAML file.
        cohorts
            Names of the cohorts to test on; None for every one.
        label, where, seed, n_resamples, on_message, on_run
            See `probe`.
        weights, encoder_file, device, offline
            See `extract`; for the text half of the model.

        Raises
        ------
        EncoderError
            A model has no text half.
        RunError
            The prompts know none of the labels.
        """
        from embedcache.verbs.zeroshot import ZeroShotOptions
        from embedcache.verbs.zeroshot import zeroshot as classify

        options = ZeroShotOptions(
            prompts=prompts,
            label=label,
            cohorts=None if cohorts is None else tuple(_names(cohorts)),
            where=where,
            seed=seed,
            n_resamples=n_resamples,
            encoders=_encoders(weights, None, "auto", encoder_file, offline=offline),
            device=device,
        )
        return classify(
            self._session(), _names(models), options, on_message=on_message, on_run=on_run
        )

    def compare(
        self,
        runs: Names | None = None,
        *,
        models: Names | None = None,
        metric: str | None = None,
        level: Level = "image",
        scoring: Scoring = "all",
        by: str | None = None,
        n_resamples: int = 10_000,
        seed: int = 0,
    ) -> CompareReport:
        """Hold stored runs against each other, paired by patient; fits nothing.

        Parameters
        ----------
        runs
            Names of runs; None for the latest run of each encoder and method.
        models
            Names of encoders, instead; None for every one with a run.
        metric
            Name of a score of the runs' task, such as 'macro_f1'; None for the one that the task
            is judged by.
        level
            What is scored: each 'image', or each 'patient'.
        scoring
            Whether 'all' classes may be predicted, or those of the cohort only ('masked').
        by
            'class' or a manifest column: the metric within each of its values too.
        n_resamples
            Number of resamples of bootstrap and permutation.
        seed
            Seed of bootstrap and permutation.

        Raises
        ------
        RunError
            There is no such run, metric or class.
        """
        from embedcache.verbs.compare import CompareOptions
        from embedcache.verbs.compare import compare as compare_runs

        options = CompareOptions(
            models=None if models is None else tuple(_names(models)),
            runs=None if runs is None else tuple(_names(runs)),
            metric=metric,
            level=level,
            scoring=scoring,
            by=by,
            n_resamples=n_resamples,
            seed=seed,
        )
        return compare_runs(self._session(), options)

    # Upkeep

    def status(self) -> Status:
        """Return what the store holds, against what the manifest wants."""
        from embedcache.verbs.status import status

        return status(self._session())

    def verify(
        self,
        *,
        repair: bool = False,
        device: str = "auto",
        weights: PathLike | None = None,
        encoder_file: PathLike | None = None,
        offline: bool = False,
        batch_size: int | None = None,
        workers: int | None = None,
        on_progress: Callable[[Progress], None] = _quiet,
        on_message: OnMessage = _quiet,
    ) -> VerifyReport:
        """Hold every stored row against its checksum; with `repair`, encode the bad ones again.

        Parameters
        ----------
        repair
            Whether to mend what can be mended.
        device, weights, encoder_file, offline, batch_size, workers, on_progress, on_message
            See `extract`; for the rows that are encoded again.
        """
        from embedcache.verbs import verify as verb
        from embedcache.verbs.extract import ExtractOptions

        if not repair:
            return verb.verify(self._session())
        options = ExtractOptions(
            _encoders(weights, None, "auto", encoder_file, offline=offline),
            device=device,
            batch_size=batch_size,
            workers=workers,
        )
        return verb.repair(self._session(), options, on_progress=on_progress, on_message=on_message)

    def gc(self, *, dry_run: bool = False, grace_s: float = 600.0) -> GcReport:
        """Drop rows that no manifest wants, and files that nothing needs any more.

        Parameters
        ----------
        dry_run
            Whether to count only, and change nothing.
        grace_s
            Age in seconds up to which files stay: a reader may hold on to them.
        """
        from embedcache.verbs.gc import gc

        return gc(self._session(), dry_run=dry_run, grace_s=grace_s)

    def index(self) -> Path:
        """Write `catalog.duckdb` anew from the files and return its path."""
        session = self._session()
        session.renew_catalog(anew=True)
        return self.workspace.catalog


def open_project(
    path: PathLike = ".",
    *,
    manifest: PathLike | None = None,
    data_root: PathLike | None = None,
    store: PathLike | Location | None = None,
) -> Project:
    """Open the project of a folder or of a manifest file.

    Parameters
    ----------
    path
        Folder with a `data_manifest.csv`, or a manifest file.
    manifest
        Manifest file; None for `data_manifest.csv` in the folder.
    data_root
        Folder that image paths start from; None for the manifest's.
    store
        Root of the store; None for `.embedcache` beside the manifest.

    Raises
    ------
    ManifestError
        Neither a manifest nor a store is there.
    """
    return Project(find_workspace(path, manifest=manifest, data_root=data_root, store=store))


def _names(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _path(path: PathLike | None) -> Path | None:
    return None if path is None else Path(path)


def _question(
    label: str,
    task: TaskName,
    train_cohort: str | None,
    external: Names | None,
    where: str | None,
    class_map: PathLike | None,
    folds: int | PathLike,
    seed: int,
) -> Question:
    from embedcache.data.question import Question

    return Question(
        label=label,
        task=task,
        train_cohort=train_cohort,
        external=None if external is None else tuple(_names(external)),
        where=where,
        class_map=None if class_map is None else str(class_map),
        folds=folds if isinstance(folds, int) else Path(folds),
        seed=seed,
    )


def _encoders(
    weights: PathLike | None,
    preprocess: str | None,
    precision: PrecisionChoice,
    encoder_file: PathLike | None,
    *,
    offline: bool,
) -> EncoderOptions:
    from embedcache.encoders.select import EncoderOptions

    return EncoderOptions(_path(weights), preprocess, precision, _path(encoder_file), offline)
