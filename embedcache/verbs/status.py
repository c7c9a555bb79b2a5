"""`status`: what a store holds against what the manifest wants, answered by the catalog."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from embedcache.catalog.holdings import EncoderHoldings, read_holdings
from embedcache.verbs.catalog import catalog_source
from embedcache.workspace import Workspace


@dataclass(frozen=True, slots=True)
class EncoderStatus:
    """What the store holds of one encoder, against what the manifest wants.

    Parameters
    ----------
    encoder, fingerprint, dim, precision
        Which.
    n_wanted, n_held, n_failed, n_missing
        Images of the manifest: in all, with a row, recorded as failed, neither.
    n_spare
        Rows of images that are not in the manifest.
    size_bytes
        Of the live rows.
    seconds
        By stage, over all passes.
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
class Status:
    """What a workspace holds.

    Parameters
    ----------
    manifest, store
        Where.
    n_images, n_patients, n_unreadable
        Images and patients of the manifest; images whose file is not here and whose digest nobody
        knows.
    cohorts
        Cohort to number of images.
    encoders
        One entry a fingerprint.
    n_runs
        Stored runs.
    """

    manifest: Path
    store: Path
    n_images: int
    n_patients: int
    n_unreadable: int
    cohorts: dict[str, int]
    encoders: tuple[EncoderStatus, ...]
    n_runs: int


def status(workspace: Workspace) -> Status:
    """Return what the store holds, against what the manifest wants."""
    held = read_holdings(catalog_source(workspace))
    return Status(
        manifest=workspace.manifest,
        store=workspace.store,
        n_images=held.n_images,
        n_patients=held.n_patients,
        n_unreadable=held.n_unreadable,
        cohorts=held.cohorts,
        encoders=tuple(_encoder_status(encoder, held.n_images) for encoder in held.encoders),
        n_runs=held.n_runs,
    )


def _encoder_status(held: EncoderHoldings, n_wanted: int) -> EncoderStatus:
    return EncoderStatus(
        encoder=held.encoder,
        fingerprint=held.fingerprint,
        dim=held.dim,
        precision=held.precision,
        n_wanted=n_wanted,
        n_held=held.n_held,
        n_failed=held.n_failed,
        n_missing=n_wanted - held.n_held - held.n_failed,
        n_spare=held.n_spare,
        size_bytes=held.size_bytes,
        seconds=held.seconds,
    )
