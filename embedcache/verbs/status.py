"""`status`: what a store holds, against what the manifest wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from embedcache.data.tabular import Tabular
from embedcache.extract.order import stage_seconds
from embedcache.files.backend import Location
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs.artefacts import artefact_kinds
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
            schema=None if self.encoders else pa.schema([(name, pa.string()) for name in names]),
        )


def status(session: Session) -> Status:
    """Return what the store holds, against what the manifest wants."""
    images = session.images
    cohort = images.table["cohort"].to_pylist()
    kinds = artefact_kinds(session)
    return Status(
        manifest=session.workspace.manifest,
        store=session.workspace.store,
        n_images=len(cohort),
        n_patients=len(set(images.table["patient_id"].to_pylist())),
        n_unreadable=images.keys.count(None),
        cohorts={name: cohort.count(name) for name in sorted(set(cohort))},
        encoders=tuple(_encoder_status(store, images.keys) for store in session.stores()),
        artefacts=tuple(KindStatus(k.name, len(k.items()), k.size()) for k in kinds),
        n_runs=len(session.runs.ids()),
    )


def _encoder_status(store: EmbeddingStore, keys: Sequence[str | None]) -> EncoderStatus:
    n_held = sum(key in store for key in keys)
    n_failed = sum(key in store.failures for key in keys)
    return EncoderStatus(
        encoder=store.name,
        fingerprint=store.fingerprint,
        dim=store.dim,
        precision=str(store.document["identity"]["precision"]),
        n_wanted=len(keys),
        n_held=n_held,
        n_failed=n_failed,
        n_missing=len(keys) - n_held - n_failed,
        n_spare=len(set(store.row_keys()) - set(keys)),
        size_bytes=store.size_bytes,
        seconds=stage_seconds(store),
    )
