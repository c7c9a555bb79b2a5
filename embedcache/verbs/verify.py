"""`verify`: hold everything stored against its checksum, and mend what can be mended."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
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
    findings = _find(session, kinds, lambda _: True)
    stores = session.workspace.encoder_folders()
    n_rows = 0
    for folder in stores:
        with contextlib.suppress(StoreReadError):  # a finding already
            n_rows += session.count_rows(folder)
    return VerifyReport(
        len(stores),
        n_rows,
        tuple(findings),
        notes=tuple(line for kind in kinds for line in kind.strangers()),
        is_whole=not findings,
    )


def _find(
    session: Session, kinds: list[ArtefactKind], is_asked_for: Callable[[Location], bool]
) -> list[Finding]:
    """Return what is wrong with some artefacts, with what artefacts need, and with the format."""
    damages = []
    refusals = []
    for kind in kinds:
        for item in filter(is_asked_for, kind.items()):
            try:
                damages += [(kind, item, damage) for damage in kind.check(item)]
            except StoreReadError as error:
                refusals.append(Finding(item, _refusal(error), kind.name, item, is_mendable=False))
    names = _image_names(session)  # now: to look at the images may write digests anew
    return [
        *_check_format(session),
        *(_finding(kind, item, damage, names) for kind, item, damage in damages),
        *refusals,
        *(Finding(lost.path, lost.problem, "references") for lost in check_references(kinds)),
    ]


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
    work = _Mending(list(report.notes))
    for kind in artefact_kinds(session):
        mendable = (f for f in report.findings if f.kind == kind.name and f.is_mendable)
        items = dict.fromkeys(finding.item for finding in mendable)
        for item in filter(None, items):
            work.mend(kind, item, on_message)
    session = Session(session.workspace)  # what was mended is read anew
    mend_references(session)
    passes = _encode_lost(session, work, options, on_progress, on_message)
    # The same look that a following `verify` takes, at what was wrong.
    session = Session(session.workspace)
    touched = {finding.item for finding in report.findings}
    left = _find(session, artefact_kinds(session), lambda item: item in touched)
    for finding in left:
        work.note_left(finding)
    with contextlib.suppress(EmbedcacheError) if left else contextlib.nullcontext():
        renew_catalog(session)
    return replace(
        report,
        repaired=True,
        passes=tuple(passes),
        notes=tuple(work.notes),
        is_whole=not left,
        n_mended=sum(not _is_left(finding, left) for finding in report.findings),
    )


def _is_left(finding: Finding, left: Sequence[Finding]) -> bool:
    """Tell whether what was wrong is so still."""
    return any(
        other.path == finding.path
        or (other.item is not None and other.item == finding.item)
        # A table that was removed and cannot be made again has its name in that of its file.
        or (other.item is None and other.path.name in finding.path.name)
        for other in left
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
        Artefacts that could not be mended, and why is noted.
    """

    notes: list[str]
    lost_keys: dict[Location, frozenset[str]] = field(default_factory=dict)
    unmended: set[Location] = field(default_factory=set)

    def mend(self, kind: ArtefactKind, item: Location, on_message: OnMessage) -> None:
        """Mend an artefact, or note why it cannot be."""
        try:
            mended = kind.mend(item)
            message = mended.message
            if mended.lost_keys:
                self.lost_keys[item] = mended.lost_keys
        except EmbedcacheError as error:
            message = f"{item} is not mended: {error}"
            self.unmended.add(item)
        on_message(message)
        self.notes.append(message)

    def note_left(self, finding: Finding) -> None:
        """Note what is wrong still, and what to do about it."""
        way_out = ""
        if finding.item in self.unmended:
            return
        if finding.kind == "references":
            way_out = (
                ", and cannot be made again: the manifest has changed since, or the folds came "
                "from a file; run the same command again, with the file if it had one"
            )
        elif finding.images:
            way_out = (
                "; make their images readable and repair again, use the manifest that has them, or "
                "drop them from it and run `embedcache gc`"
            )
        self.notes.append(f"{finding.path} {finding.problem}{way_out}")


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
