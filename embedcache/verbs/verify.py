"""`verify`: hold everything stored against its checksum, and mend what can be mended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Final

import pyarrow as pa

from embedcache.data.tabular import Tabular
from embedcache.encoders.plugins import register_file
from embedcache.encoders.select import identify_stored
from embedcache.errors import EmbedcacheError, StoreCorruptError, StoreReadError
from embedcache.extract.report import PassReport, Progress
from embedcache.files.backend import Location
from embedcache.files.kinds import ArtefactKind, Damage, check_references
from embedcache.verbs.artefacts import artefact_kinds
from embedcache.verbs.catalog import renew_catalog
from embedcache.verbs.extract import ExtractOptions, encode_images
from embedcache.verbs.session import Session

OnMessage = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with a store.

    Parameters
    ----------
    path
        File that is damaged or missing.
    problem
        What is wrong with it, in a few words.
    kind
        Kind of artefact that it belongs to, such as 'runs'.
    item
        Artefact that it belongs to; None where something names an artefact that is gone.
    images
        Ids of the images whose rows are lost with it.
    is_mendable
        Whether a repair may touch it; if not, it is left to the user.
    """

    path: Location
    problem: str
    kind: str
    item: Location | None = None
    images: tuple[str, ...] = ()
    is_mendable: bool = True


_FINDINGS: Final = pa.schema(
    [
        ("path", pa.string()),
        ("problem", pa.string()),
        ("kind", pa.string()),
        ("n_images", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True, repr=False)
class VerifyReport(Tabular):
    """What `verify` found.

    Parameters
    ----------
    n_encoders, n_rows
        Number of encoders and rows that were checked.
    findings
        What is wrong.
    repaired
        Whether it was mended.
    passes
        Passes that encoded lost rows again.
    notes
        What was done, and what could not be mended, with what to do.
    is_whole
        Whether nothing is wrong any more.
    n_mended
        Number of findings that were mended.
    """

    n_encoders: int
    n_rows: int
    findings: tuple[Finding, ...]
    repaired: bool = False
    passes: tuple[PassReport, ...] = ()
    notes: tuple[str, ...] = ()
    is_whole: bool = True
    n_mended: int = 0

    def __repr__(self) -> str:
        if self.findings:
            return Tabular.__repr__(self)
        return f"{self.n_rows} rows of {self.n_encoders} encoders checked: sound"

    def table(self) -> pa.Table:
        """Return what is wrong, one row a file."""
        rows = [
            {
                "path": str(finding.path),
                "problem": finding.problem,
                "kind": finding.kind,
                "n_images": len(finding.images),
            }
            for finding in self.findings
        ]
        return pa.Table.from_pylist(rows, schema=_FINDINGS)


def verify(session: Session) -> VerifyReport:
    """Hold every file of the store against its checksum, and every row.

    Raises
    ------
    StoreMismatchError
        The store's folder holds something, but no store.
    """
    session.workspace.check_store()
    if not session.workspace.has_store():
        return VerifyReport(0, 0, ())
    kinds = artefact_kinds(session)
    damages = []
    refusals = []
    for kind in kinds:
        for item in kind.items():
            try:
                damages += [(kind, item, damage) for damage in kind.check(item)]
            except StoreReadError as error:
                refusals.append(Finding(item, _refusal(error), kind.name, is_mendable=False))
    names = _image_names(session)  # now: to look at the images may write digests anew
    findings = [
        *_check_format(session),
        *_check_copies(session),
        *(_finding(kind, item, damage, names) for kind, item, damage in damages),
        *refusals,
        *(Finding(lost.path, lost.problem, "references") for lost in check_references(kinds)),
    ]
    stores = session.workspace.encoder_folders()
    n_rows = 0
    for folder in stores:
        with contextlib.suppress(StoreReadError):  # a finding already
            n_rows += session.count_rows(folder)
    return VerifyReport(len(stores), n_rows, tuple(findings), is_whole=not findings)


def _refusal(error: StoreReadError) -> str:
    return f"holds what cannot be read: {error}"


def _finding(
    kind: ArtefactKind, item: Location, damage: Damage, names: dict[str, list[str]]
) -> Finding:
    images = tuple(name for key in damage.keys for name in names.get(key, [key[:12]]))
    return Finding(damage.path, damage.problem, kind.name, item, images)


def _image_names(session: Session) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    # A damaged snapshot is a finding of its own.
    with contextlib.suppress(StoreCorruptError, StoreReadError):
        images = session.images
        for key, name in zip(images.keys, images.table["image_id"].to_pylist(), strict=True):
            names.setdefault(key or "", []).append(name)
    return names


def _check_format(session: Session) -> Iterator[Finding]:
    try:
        session.workspace.check_format()
    except StoreCorruptError as error:
        yield Finding(session.workspace.format_file, error.problem, "format")
    except StoreReadError as error:
        yield Finding(session.workspace.format_file, _refusal(error), "format", is_mendable=False)


def _check_copies(session: Session) -> Iterator[Finding]:
    for copy, folder in session.workspace.copied_encoder_folders().items():
        problem = f"holds the same fingerprint as {folder.name}, so it is not read; remove one"
        yield Finding(copy, problem, "embeddings", is_mendable=False)


def repair(
    session: Session,
    options: ExtractOptions,
    on_progress: Callable[[Progress], None] = lambda _: None,
    on_message: OnMessage = lambda _: None,
) -> VerifyReport:
    """Mend what `verify` finds: lost rows are encoded again, and nothing else is.

    Fold tables and remembered manifests are made again. What is damaged of a run, of trained
    weights or of pictures at training size is removed: the same command makes it again. What
    cannot be mended is noted, and the rest is mended all the same.
    """
    from embedcache.verbs.references import mend_references  # late: what only looks fits nothing

    report = verify(session)
    if not report.findings:
        return report
    if options.encoders.encoder_file is not None:
        register_file(options.encoders.encoder_file)
    if any(f.kind == "format" and f.is_mendable for f in report.findings):
        session.workspace.mend_format()
    work = _Mending()
    for kind in artefact_kinds(session):
        mendable = (f for f in report.findings if f.kind == kind.name and f.is_mendable)
        items = dict.fromkeys(finding.item for finding in mendable)
        for item in filter(None, items):
            work.mend(session, kind, item, on_message)
    session = Session(session.workspace)  # what was mended is read anew
    left = [finding for finding in report.findings if not finding.is_mendable]
    work.notes.extend(f"{finding.path} {finding.problem}" for finding in left)
    mend_references(session)
    for damage in check_references(artefact_kinds(session)):
        work.note_lost(damage)
    passes = _encode_lost(session, work, options, on_progress, on_message)
    is_whole = not (left or work.unmended or work.lost_names)
    with contextlib.nullcontext() if is_whole else contextlib.suppress(EmbedcacheError):
        renew_catalog(session)
    return replace(
        report,
        repaired=True,
        passes=tuple(passes),
        notes=tuple(work.notes),
        is_whole=is_whole,
        n_mended=sum(map(work.has_mended, report.findings)),
    )


@dataclass(slots=True)
class _Mending:
    """How far a repair is.

    Parameters
    ----------
    notes
        What was done, and what could not be mended.
    lost_keys
        SHA-256 of each image that has to be encoded again, by folder of the encoder.
    unmended
        Artefacts that are damaged still.
    lost_names
        Names of fold tables and snapshots that something names but that are gone.
    """

    notes: list[str] = field(default_factory=list)
    lost_keys: dict[Location, frozenset[str]] = field(default_factory=dict)
    unmended: set[Location] = field(default_factory=set)
    lost_names: set[str] = field(default_factory=set)

    def mend(
        self, session: Session, kind: ArtefactKind, item: Location, on_message: OnMessage
    ) -> None:
        """Mend an artefact, or note why it cannot be."""
        try:
            mended = kind.mend(item)
            message, wanted = mended.message, mended.lost_keys
            if wanted is None or wanted:
                every = frozenset(key for key in session.images.keys if key)
                self.lost_keys[item] = every if wanted is None else wanted
        except EmbedcacheError as error:
            message = f"{item} is not mended: {error}"
            self.unmended.add(item)
        on_message(message)
        self.notes.append(message)

    def note_lost(self, damage: Damage) -> None:
        """Note that something names a table that cannot be made again."""
        self.lost_names.add(damage.path.name)
        self.notes.append(
            f"{damage.path} {damage.problem}, and cannot be made again: the manifest has changed "
            "since, or the folds came from a file; run the same command again, with the file if "
            "it had one"
        )

    def has_mended(self, finding: Finding) -> bool:
        """Tell whether what was found is mended."""
        # A table that was removed and cannot be made again has its name in that of its file.
        is_lost = any(name in finding.path.name for name in self.lost_names)
        return finding.is_mendable and finding.item not in self.unmended and not is_lost


def _encode_lost(
    session: Session,
    work: _Mending,
    options: ExtractOptions,
    on_progress: Callable[[Progress], None],
    on_message: OnMessage,
) -> list[PassReport]:
    """Encode the lost rows of each encoder again, or note why it cannot be done."""
    passes = []
    for folder, keys in work.lost_keys.items():
        try:
            passes.append(_encode_again(session, folder, keys, options, on_progress, on_message))
            work.unmended |= {folder} if passes[-1].n_failed else set()
        except EmbedcacheError as error:
            work.notes.append(f"{folder.name}: lost rows are not encoded again yet: {error}")
            work.unmended.add(folder)
    return passes


def _encode_again(
    session: Session,
    folder: Location,
    lost_keys: frozenset[str],
    options: ExtractOptions,
    on_progress: Callable[[Progress], None],
    on_message: OnMessage,
) -> PassReport:
    store, images = session.open_store(folder), session.images
    wanted = lost_keys - set(store.row_keys()) - set(store.failures)
    # A remembered manifest has no files: then nothing is encoded.
    files = [file for file, key in zip(images.files, images.keys, strict=False) if key in wanted]
    documents = session.encoder_documents.values()
    encoder = identify_stored(
        session.workspace, store.document, session.digests, documents, options.encoders
    )
    return encode_images(
        session, [encoder], files, options, on_progress=on_progress, on_message=on_message
    )
