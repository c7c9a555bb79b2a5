"""The handle: a manifest, its store, and every verb as a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embedcache.workspace import Workspace, find_workspace

if TYPE_CHECKING:
    import pyarrow as pa

    from embedcache.catalog.output import QueryRows
    from embedcache.data.embeddings import LabelledEmbeddings
    from embedcache.data.folds import FoldSize, FoldTable
    from embedcache.extract.report import PassReport, Progress
    from embedcache.verbs.compare import CompareReport
    from embedcache.verbs.extract import Plan
    from embedcache.verbs.finetune import Told
    from embedcache.verbs.probing import ProbeOptions, RunOutcome
    from embedcache.verbs.status import Status
    from embedcache.verbs.sweep import SweepReport
    from embedcache.verbs.upkeep import GcReport
    from embedcache.verbs.verify import VerifyReport


class Project:
    """A manifest of images and the store that goes with it.

    Every method is a verb of the command line, which is a thin skin over this class.

    Parameters
    ----------
    workspace
        Where things are; `embedcache.open` finds it from a path.

    Examples
    --------
    >>> project = embedcache.open("data_manifest.csv")  # doctest: +SKIP
    >>> project.extract(["efficientnet-lite0"])  # doctest: +SKIP
    >>> rows = project.embeddings("efficientnet-lite0", where="cohort = 'spain'")  # doctest: +SKIP
    >>> project.sql("SELECT label, count(*) FROM images GROUP BY label")  # doctest: +SKIP
    """

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def __repr__(self) -> str:
        return f"Project(manifest={self.workspace.manifest}, store={self.workspace.store})"

    def images(self) -> pa.Table:
        """Return one row an image: every manifest column, and `sha256` of its bytes."""
        from embedcache.verbs import state

        return state.load_images(self.workspace).table

    def plan(self, models: Sequence[str], **options: Any) -> list[Plan]:
        """Return what `extract` would do; encodes and stores nothing.

        Parameters
        ----------
        models, options
            As for `extract`.
        """
        from embedcache.verbs import extract as encode
        from embedcache.verbs.extract import ExtractOptions

        return encode.plan(self.workspace, models, ExtractOptions(**options))

    def extract(
        self,
        models: Sequence[str] | str,
        *,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_message: Callable[[str], None] = lambda _: None,
        **options: Any,
    ) -> PassReport:
        """Encode every image that a model's store lacks, each image read and decoded once.

        Parameters
        ----------
        models
            Names of encoders; 'all' is every registered one whose weights are here.
        on_progress, on_message
            Told how far the pass is, and what else a user should know.
        options
            The fields of `ExtractOptions`: device, precision, weights, preprocess, encoder_file,
            batch_size, workers, offline, fail_fast, retry_failed, shard.

        Raises
        ------
        UnknownEncoderError, EncoderWeightsError, DeviceError
            The encoder cannot be loaded.
        StoreWriteError
            The disk refused; what was committed before is safe.
        """
        from embedcache.verbs import extract as encode
        from embedcache.verbs.extract import ExtractOptions

        return encode.extract(
            self.workspace,
            _names(models),
            ExtractOptions(**options),
            on_progress=on_progress,
            on_message=on_message,
        )

    def embeddings(
        self, model: str, *, where: str | None = None, label: str = "label"
    ) -> LabelledEmbeddings:
        """Return one model's rows, in manifest order.

        Images that are recorded as failed are left out.

        Parameters
        ----------
        model
            `name`, or `name@fingerprint` where the store holds several.
        where
            A SQL predicate over manifest columns.
        label
            The manifest column to return as label.

        Raises
        ------
        MissingEmbeddingsError
            The store lacks images that were never tried.
        StoreCorruptError
            Stored bytes do not match their checksum.
        """
        from embedcache.verbs import cohorts

        return cohorts.select_embeddings(self.workspace, model, where=where, label=label)

    def export(
        self,
        model: str,
        file: Path | str,
        *,
        kind: str | None = None,
        where: str | None = None,
        label: str = "label",
    ) -> list[Path]:
        """Write one model's rows to a file of their own and return the files written.

        Parameters
        ----------
        model, where, label
            As for `embeddings`.
        file, kind
            Where, and 'parquet', 'npy' or 'safetensors'; by default the suffix says it.
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
        from embedcache.catalog.query import query_table
        from embedcache.verbs.catalog import catalog_source

        return query_table(catalog_source(self.workspace), query)

    def sql_rows(self, query: str) -> QueryRows:
        """Return the result of a SELECT as column names and plain values, in less time than `sql`.

        Raises
        ------
        CatalogError
            As for `sql`.
        """
        from embedcache.catalog.query import query_rows
        from embedcache.verbs.catalog import catalog_source

        return query_rows(catalog_source(self.workspace), query)

    def folds(self, **options: Any) -> tuple[FoldTable, list[FoldSize]]:
        """Return the patient folds of the training cohort, and what each of them tests.

        They are assigned and stored at first use.

        Parameters
        ----------
        options
            The fields of `CohortOptions`.
        """
        from embedcache.verbs import probing
        from embedcache.verbs.cohorts import CohortOptions

        return probing.folds(self.workspace, CohortOptions(**options))

    def probe(
        self,
        models: Sequence[str] | str,
        *,
        probe_options: ProbeOptions | None = None,
        on_message: Callable[[str], None] = lambda _: None,
        on_run: Callable[[RunOutcome], None] = lambda _: None,
        **options: Any,
    ) -> list[RunOutcome]:
        """Fit a probe on each model's embeddings, and store predictions and scores.

        Parameters
        ----------
        models
            As for `embeddings`; 'all' is every model the store holds.
        probe_options
            Which probe, by which protocol, and the bootstrap.
        on_message, on_run
            Told what a reader of the scores must know, and each run as it is done.
        options
            The fields of `CohortOptions`: label, train_cohort, external, where, class_map, folds,
            seed.

        Raises
        ------
        MissingEmbeddingsError
            A model lacks images of the cohorts.
        LeakageError
            A training patient stands in an external cohort.
        """
        from embedcache.verbs import probing
        from embedcache.verbs.cohorts import CohortOptions

        return probing.probe(
            self.workspace,
            _names(models),
            CohortOptions(**options),
            probe_options or probing.ProbeOptions(),
            on_message=on_message,
            on_run=on_run,
        )

    def probe_models(self, models: Sequence[str] | str) -> list[str]:
        """Return the models that `probe` would probe: 'all' is every one the store holds."""
        from embedcache.verbs import probing

        return probing.probe_models(self.workspace, _names(models))

    def sweep(
        self,
        models: Sequence[str] | str,
        *,
        probe_options: ProbeOptions | None = None,
        with_controls: bool = True,
        on_message: Callable[[str], None] = lambda _: None,
        on_run: Callable[[RunOutcome], None] = lambda _: None,
        **options: Any,
    ) -> SweepReport:
        """Probe models as `probe` does, with what they have to beat, and compare them.

        Parameters
        ----------
        models, probe_options, on_message, on_run, options
            As for `probe`.
        with_controls
            Whether the majority, metadata and shuffled labels are probed too.
        """
        from embedcache.verbs import probing, sweep
        from embedcache.verbs.cohorts import CohortOptions

        return sweep.sweep(
            self.workspace,
            _names(models),
            CohortOptions(**options),
            probe_options or probing.ProbeOptions(),
            with_controls=with_controls,
            on_message=on_message,
            on_run=on_run,
        )

    def learning_curves(
        self,
        models: Sequence[str] | str,
        *,
        sizes: Sequence[int] | None = None,
        n_draws: int = 10,
        n_threads: int | None = None,
        on_run: Callable[[RunOutcome], None] = lambda _: None,
        **options: Any,
    ) -> list[RunOutcome]:
        """Score logistic probes of 1, 2, 4, ... training patients, and store the curves.

        Parameters
        ----------
        models
            As for `probe`.
        sizes
            Numbers of patients; all of them come last in any case.
        n_draws
            Orders in which patients are taken; the same for all models.
        n_threads
            As for `ProbeOptions`.
        on_run, options
            As for `probe`.
        """
        from embedcache.verbs.cohorts import CohortOptions
        from embedcache.verbs.curves import CurveOptions, learning_curves

        return learning_curves(
            self.workspace,
            _names(models),
            CohortOptions(**options),
            CurveOptions(None if sizes is None else tuple(sizes), n_draws, n_threads),
            on_run=on_run,
        )

    def finetune(
        self,
        models: Sequence[str] | str,
        *,
        recipe: Path | str | None = None,
        changes: Mapping[str, Any] | None = None,
        cohort_options: Mapping[str, Any] | None = None,
        told: Told | None = None,
        **options: Any,
    ) -> list[RunOutcome]:
        """Train encoder and head on each fold, and store predictions and scores as probes do.

        Parameters
        ----------
        models
            Names of encoders.
        recipe, changes
            A TOML file of recipe keys, and single keys; see `finetune/recipe.toml`.
        cohort_options
            The fields of `CohortOptions`.
        told
            Whom to tell of progress.
        options
            The other fields of `FinetuneOptions`: regime, device, n_devices, save, weights,
            preprocess, encoder_file, offline, workers, n_resamples.

        Raises
        ------
        LeakageError
            A training patient stands in an external cohort.
        RunError
            A recipe key or regime that is none, or a loss that is no number.
        """
        from embedcache.finetune.recipe import read_recipe
        from embedcache.verbs.cohorts import CohortOptions
        from embedcache.verbs.finetune import FinetuneOptions, Told, finetune

        found = read_recipe(None if recipe is None else Path(recipe), changes)
        return finetune(
            self.workspace,
            _names(models),
            CohortOptions(**(cohort_options or {})),
            FinetuneOptions(recipe=found, **options),
            told or Told(),
        )

    def zeroshot(
        self,
        models: Sequence[str] | str,
        *,
        on_message: Callable[[str], None] = lambda _: None,
        on_run: Callable[[RunOutcome], None] = lambda _: None,
        **options: Any,
    ) -> list[RunOutcome]:
        """Classify cached images by text prompts, and store predictions and scores.

        Parameters
        ----------
        models
            fetalclip, or any open_clip:ARCH/TAG.
        on_message, on_run
            As for `probe`.
        options
            The fields of `ZeroShotOptions`: prompts, label, cohorts, where, seed, n_resamples,
            weights, encoder_file, device, offline.

        Raises
        ------
        EncoderError
            A model has no text half.
        RunError
            The prompts know none of the labels.
        """
        from embedcache.verbs.zeroshot import ZeroShotOptions, zeroshot

        return zeroshot(
            self.workspace,
            _names(models),
            ZeroShotOptions(**options),
            on_message=on_message,
            on_run=on_run,
        )

    def compare(self, **options: Any) -> CompareReport:
        """Hold stored runs against each other, paired by patient; fits nothing.

        Parameters
        ----------
        options
            The fields of `CompareOptions`: models, runs, metric, level, scoring, by, n_resamples,
            seed.

        Raises
        ------
        RunError
            There is no such run, metric or class.
        """
        from embedcache.verbs.compare import CompareOptions, compare_runs

        return compare_runs(self.workspace, CompareOptions(**options))

    def status(self) -> Status:
        """Return what the store holds, against what the manifest wants."""
        from embedcache.verbs.status import status

        return status(self.workspace)

    def verify(
        self,
        *,
        repair: bool = False,
        on_progress: Callable[[Progress], None] = lambda _: None,
        on_message: Callable[[str], None] = lambda _: None,
        **options: Any,
    ) -> VerifyReport:
        """Hold every stored row against its checksum; with `repair`, encode the bad ones again.

        Parameters
        ----------
        repair
            Mend what can be mended.
        options
            As for `extract`, for the rows that are encoded again.
        """
        from embedcache.verbs import verify
        from embedcache.verbs.extract import ExtractOptions

        if not repair:
            return verify.verify(self.workspace)
        return verify.repair(
            self.workspace,
            ExtractOptions(**options),
            on_progress=on_progress,
            on_message=on_message,
        )

    def gc(self, *, dry_run: bool = False, grace_s: float | None = None) -> GcReport:
        """Drop rows that no manifest wants, and files that nothing needs any more."""
        from embedcache.verbs import upkeep

        grace = {} if grace_s is None else {"grace_s": grace_s}
        return upkeep.collect_garbage(self.workspace, dry_run=dry_run, **grace)

    def index(self) -> Path:
        """Write `catalog.duckdb` anew from the files and return its path."""
        from embedcache.verbs import state

        state.renew_catalog(self.workspace, force=True)
        return self.workspace.catalog


def open_project(
    path: Path | str = ".",
    *,
    manifest: Path | str | None = None,
    data_root: Path | str | None = None,
    store: Path | str | None = None,
) -> Project:
    """Open the project of a folder or of a manifest file.

    Parameters
    ----------
    path
        A folder with a `data_manifest.csv`, or a manifest file.
    manifest, data_root, store
        Override `<folder>/data_manifest.csv`, the manifest's folder, and `.embedcache` beside the
        manifest.

    Raises
    ------
    ManifestError
        Neither a manifest nor a store is there.
    """
    return Project(find_workspace(path, manifest=manifest, data_root=data_root, store=store))


def _names(models: Sequence[str] | str) -> list[str]:
    return [models] if isinstance(models, str) else list(models)
