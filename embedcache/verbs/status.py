"""`status`: what a store holds, against what the manifest wants."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embedcache.catalog.holdings import EncoderHoldings, read_holdings
from embedcache.data.tabular import Tabular
from embedcache.files.backend import Location
from embedcache.verbs.artefacts import artefact_kinds
from embedcache.verbs.catalog import catalog_source
from embedcache.verbs.session import Session


@dataclass(frozen=True, slots=True)
class EncoderStatus:
    """What the store holds of one encoder, against what the manifest wants.

    Parameters
    ----------
    encoder, fingerprint
        Name of the encoder, and fingerprint of its rows.
    dim, precision
        Length of a row, and precision of the computation.
    n_wanted, n_held, n_failed, n_missing
        Number of images of the manifest: in all, with a row, recorded as failed, neither.
    n_spare
        Number of rows of images that are not in the manifest.
    size_bytes
        Bytes of the live rows.
    seconds
        Seconds by stage, over all passes.
    """

    encoder: str
    fingerprint: str
    dim: int
    precision: str
    n_wanted: int
    n_held: int
    n_failed: int
    n_missing: int
    n_spare: int
    size_bytes: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class KindStatus:
    """What the store holds of one kind of artefact.

    Parameters
    ----------
    kind
        Name of the kind, such as 'fold tables'.
    n_items
        Number of artefacts.
    size_bytes
        Bytes that they take.
    """

    kind: str
    n_items: int
    size_bytes: int


@dataclass(frozen=True, slots=True, repr=False)
class Status(Tabular):
    """What a workspace holds.

    Parameters
    ----------
    manifest, store
        Manifest file, and root of the store.
    n_images, n_patients
        Number of images and patients of the manifest.
    n_unreadable
        Number of images whose file is not here and whose digest nobody knows.
    cohorts
        Number of images of each cohort.
    encoders
        What is held of each encoder fingerprint.
    artefacts
        What is held of each kind of artefact.
    n_runs
        Number of stored runs.
    """

    manifest: Path
    store: Location
    n_images: int
    n_patients: int
    n_unreadable: int
    cohorts: dict[str, int]
    encoders: tuple[EncoderStatus, ...]
    artefacts: tuple[KindStatus, ...]
    n_runs: int

    def table(self) -> pa.Table:
        """Return one row an encoder."""
        names = [name for name in EncoderStatus.__dataclass_fields__ if name != "seconds"]
        return pa.Table.from_pylist(
            [{name: getattr(row, name) for name in names} for row in self.encoders],
            # Without rows Arrow would know no columns.
            schema=None if self.encoders else pa.schema([(name, pa.string()) for name in names]),
        )


def status(session: Session) -> Status:
    """Return what the store holds, against what the manifest wants.

    Images count as they were when a command last looked at their files: an edited picture shows
    after the next `extract`, `manifest check` or `verify`.
    """
    workspace = session.workspace
    holdings = read_holdings(catalog_source(workspace, session))
    return Status(
        manifest=workspace.manifest,
        store=workspace.store,
        n_images=holdings.n_images,
        n_patients=holdings.n_patients,
        n_unreadable=holdings.n_unreadable,
        cohorts=holdings.cohorts,
        encoders=tuple(
            _encoder_status(encoder, holdings.n_images) for encoder in holdings.encoders
        ),
        artefacts=tuple(
            KindStatus(kind.name, len(kind.items()), kind.size())
            for kind in artefact_kinds(session)
        ),
        n_runs=holdings.n_runs,
    )


def _encoder_status(holdings: EncoderHoldings, n_wanted: int) -> EncoderStatus:
    return EncoderStatus(
        encoder=holdings.encoder,
        fingerprint=holdings.fingerprint,
        dim=holdings.dim,
        precision=holdings.precision,
        n_wanted=n_wanted,
        n_held=holdings.n_held,
        n_failed=holdings.n_failed,
        n_missing=n_wanted - holdings.n_held - holdings.n_failed,
        n_spare=holdings.n_spare,
        size_bytes=holdings.size_bytes,
        seconds=holdings.seconds,
    )
