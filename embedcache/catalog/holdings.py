"""What a catalog says that a workspace holds: images, and the rows of each encoder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from embedcache.catalog.query import CatalogSource, ask

if TYPE_CHECKING:
    import duckdb

_IMAGES: Final = """
SELECT count(*), count(DISTINCT patient_id), count(*) FILTER (sha256 IS NULL) FROM images
"""
_COHORTS: Final = "SELECT cohort, count(*) FROM images GROUP BY cohort ORDER BY cohort"
# Counted by digest, once an encoder: a join of all images with all rows would be wider.
_ENCODERS: Final = """
WITH wanted AS (SELECT sha256, count(*) AS n FROM images WHERE sha256 IS NOT NULL GROUP BY sha256),
held AS (
    SELECT fingerprint, coalesce(sum(n), 0) AS n_held, count(*) FILTER (n IS NULL) AS n_spare
    FROM internal.stored_rows LEFT JOIN wanted USING (sha256) GROUP BY fingerprint
),
failed AS (
    SELECT fingerprint, sum(n) AS n_failed
    FROM internal.stored_failures JOIN wanted USING (sha256) GROUP BY fingerprint
)
SELECT encoder, fingerprint, dim, "precision", coalesce(n_held, 0), coalesce(failed.n_failed, 0),
       coalesce(n_spare, 0), size_bytes, seconds
FROM encoders
LEFT JOIN held USING (fingerprint)
LEFT JOIN failed USING (fingerprint)
ORDER BY encoder, fingerprint
"""


@dataclass(frozen=True, slots=True)
class EncoderHoldings:
    """What a workspace holds of one encoder.

    Parameters
    ----------
    encoder, fingerprint, dim, precision
        Facts of the encoder.
    n_held, n_failed
        Number of images of the manifest with an embedding, and recorded as failed.
    n_spare
        Number of embeddings of images that are not in the manifest.
    size_bytes
        Bytes of the live rows on disk.
    seconds
        Seconds spent by stage of extraction, over all passes.
    """

    encoder: str
    fingerprint: str
    dim: int
    precision: str
    n_held: int
    n_failed: int
    n_spare: int
    size_bytes: int
    seconds: dict[str, float]


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a workspace holds.

    Parameters
    ----------
    n_images, n_patients
        Number of images and patients of the manifest.
    n_unreadable
        Number of images whose file is not here and whose digest nobody knows.
    cohorts
        Number of images by cohort, sorted by name.
    encoders
        One entry an encoder fingerprint, sorted by name.
    n_runs
        Number of stored runs.
    """

    n_images: int
    n_patients: int
    n_unreadable: int
    cohorts: dict[str, int]
    encoders: tuple[EncoderHoldings, ...]
    n_runs: int


def read_holdings(source: CatalogSource) -> Holdings:
    """Return what a workspace holds.

    Raises
    ------
    CatalogError
        DuckDB refuses.
    StoreCorruptError
        An item that had to be loaded is damaged.
    """
    return ask(source, _holdings)


def _holdings(connection: duckdb.DuckDBPyConnection) -> Holdings:
    ((n_images, n_patients, n_unreadable),) = connection.execute(_IMAGES).fetchall()
    cohorts = dict(connection.execute(_COHORTS).fetchall())
    encoders = connection.execute(_ENCODERS).fetchall()
    ((n_runs,),) = connection.execute("SELECT count(*) FROM runs").fetchall()
    return Holdings(
        n_images=n_images,
        n_patients=n_patients,
        n_unreadable=n_unreadable,
        cohorts=cohorts,
        encoders=tuple(_encoder(*row) for row in encoders),
        n_runs=n_runs,
    )


def _encoder(
    encoder: str,
    fingerprint: str,
    dim: int,
    precision: str,
    n_held: int,
    n_failed: int,
    n_spare: int,
    size_bytes: int,
    seconds: str,
) -> EncoderHoldings:
    return EncoderHoldings(
        encoder=encoder,
        fingerprint=fingerprint,
        dim=dim,
        precision=precision,
        n_held=int(n_held),
        n_failed=int(n_failed),
        n_spare=n_spare,
        size_bytes=size_bytes,
        seconds=json.loads(seconds),
    )
