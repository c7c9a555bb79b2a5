"""The front door: a manifest, its store, and every verb of the command line as a method.

Verbs are imported where they are called: a query pays for no encoder and no probe.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from embedcache.verbs.run_verbs import OnMessage, RunVerbs, quiet
from embedcache.workspace import find_workspace

if TYPE_CHECKING:
    import pyarrow as pa

    from embedcache.catalog.output import QueryRows
    from embedcache.data.embeddings import LabelledEmbeddings
    from embedcache.encoders.choices import PrecisionChoice
    from embedcache.extract.report import PassReport, Progress
    from embedcache.files.backend import Location
    from embedcache.verbs.arguments import Names, PathLike
    from embedcache.verbs.extract import Plans
    from embedcache.verbs.gc import GcReport
    from embedcache.verbs.manifest import CheckReport
    from embedcache.verbs.status import Status
    from embedcache.verbs.verify import VerifyReport


class Project(RunVerbs):
    """A manifest of images and the store that goes with it.

    Every method is a verb of the command line, which is a thin skin over this class. Where several
    names may be given, a text is one name.

    Parameters
    ----------
    workspace
        Manifest, data root and store; `embedcache.open` finds them from a path.

    Examples
    --------
    >>> project = embedcache.open("data_manifest.csv")  # doctest: +SKIP
    >>> project.extract("efficientnet-lite0")  # doctest: +SKIP
    >>> rows = project.embeddings("efficientnet-lite0", where="cohort = 'spain'")  # doctest: +SKIP
    >>> project.probe("all").to_pandas()  # doctest: +SKIP
    >>> project.sql("SELECT label, count(*) FROM images GROUP BY label")  # doctest: +SKIP
    """

    def __repr__(self) -> str:
        return f"Project(manifest={self.workspace.manifest}, store={self.workspace.store})"

    # Images and embeddings

    def images(self) -> pa.Table:
        """Return one row an image: every manifest column, and `sha256` of its bytes."""
        return self._session().images.table

    def check_manifest(self) -> CheckReport:
        """Check the manifest and every image it names: there, readable, unchanged, and no leak."""
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
    ) -> Plans:
        """Return what `extract` would do with the same arguments; encodes and stores nothing."""
        from embedcache.verbs.arguments import encoder_options, name_list
        from embedcache.verbs.extract import ExtractOptions, plan

        encoders = encoder_options(
            weights, encoder_file, offline=offline, preprocess=preprocess, precision=precision
        )
        return plan(self._session(), name_list(models), ExtractOptions(encoders, shard=shard))

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
        shared: bool = False,
        on_progress: Callable[[Progress], None] = quiet,
        on_message: OnMessage = quiet,
    ) -> PassReport:
        """Encode every image that a model's store lacks, each image read and decoded once.

        Parameters
        ----------
        models
            Names of encoders; 'all' for every registered one whose weights are here.
        weights, preprocess, precision, encoder_file, offline
            Sources of encoders, and precision of their computation; see `EncoderOptions`.
        device, batch_size, workers, fail_fast, retry_failed, shard, shared
            How the pass goes; see `ExtractOptions`.
        on_progress, on_message
            Called with how far the pass is, and with what else a user should know.
        """
        from embedcache.verbs.arguments import encoder_options, name_list
        from embedcache.verbs.extract import ExtractOptions, extract

        encoders = encoder_options(
            weights, encoder_file, offline=offline, preprocess=preprocess, precision=precision
        )
        options = ExtractOptions(
            encoders, device, batch_size, workers, fail_fast, retry_failed, shard, shared
        )
        return extract(self._session(), name_list(models), options, on_progress, on_message)

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
        overwrite: bool = False,
        pseudonymise: PathLike | None = None,
    ) -> list[Path]:
        """Write the rows that `embeddings` returns to a file and return the files written.

        Parameters
        ----------
        model, where, label
            Rows to write; see `embeddings`.
        file, kind
            File to write, and 'parquet', 'npy' or 'safetensors'; None for what its suffix says.
        overwrite
            Whether a file that is no earlier output of that kind is replaced too.
        pseudonymise
            File of the key under which patients and images get pseudonyms; made where it is not
            there. None for the ids of the manifest.
        """
        from embedcache.catalog.export import write_embeddings
        from embedcache.data.pseudonyms import read_key

        rows = self.embeddings(model, where=where, label=label)
        if pseudonymise is not None:
            rows = rows.pseudonymised(read_key(Path(pseudonymise)))
        return write_embeddings(rows, Path(file), kind, overwrite=overwrite)

    def sql(self, query: str) -> pa.Table:
        """Return the result of a SELECT over the views of docs/sql.md as an Arrow table."""
        from embedcache.verbs.sql import sql

        return sql(self.workspace, query)

    def sql_rows(self, query: str) -> QueryRows:
        """Return the result of a SELECT as column names and plain values, sooner than `sql`."""
        from embedcache.verbs.sql import sql_rows

        return sql_rows(self.workspace, query)

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
        on_progress: Callable[[Progress], None] = quiet,
        on_message: OnMessage = quiet,
    ) -> VerifyReport:
        """Hold every stored row against its checksum; with `repair`, encode the bad ones again.

        Parameters
        ----------
        repair
            Whether to mend what can be mended.
        device, weights, encoder_file, offline, batch_size, workers, on_progress, on_message
            How rows are encoded again; see `extract`.
        """
        from embedcache.verbs import verify as verb
        from embedcache.verbs.arguments import encoder_options
        from embedcache.verbs.extract import ExtractOptions

        if not repair:
            return verb.verify(self._session())
        encoders = encoder_options(weights, encoder_file, offline=offline)
        options = ExtractOptions(encoders, device, batch_size, workers)
        return verb.repair(self._session(), options, on_progress, on_message)

    def gc(
        self, *, dry_run: bool = False, grace_s: float = 600.0, on_message: OnMessage = quiet
    ) -> GcReport:
        """Drop rows that no manifest wants, and files that nothing needs any more.

        Parameters
        ----------
        dry_run
            Whether to count only, and change nothing.
        grace_s
            Age in seconds up to which files stay: a reader may hold on to them.
        on_message
            Function called with what a user should know, such as what is waited for.
        """
        from embedcache.verbs.gc import gc

        return gc(self._session(), dry_run=dry_run, grace_s=grace_s, on_message=on_message)

    def index(self) -> Path:
        """Write `catalog.duckdb` anew from the files and return its path."""
        from embedcache.verbs.catalog import renew_catalog

        renew_catalog(self._session(), anew=True)
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
