"""The rows of embedding stores as tables, and as the views `embeddings` and `embeddings_NAME`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

import duckdb
import numpy as np
import pyarrow as pa

from embedcache.catalog.sources import EncoderRow, one_row
from embedcache.store.embedding_store import EmbeddingStore

COMMON_VIEW = "embeddings"


def encoder_tables(store: EmbeddingStore) -> dict[str, pa.Table]:
    """Return the rows that an encoder's store gives to the catalog, by table."""
    row = EncoderRow(
        encoder=store.name,
        fingerprint=store.fingerprint,
        dim=store.dim,
        n_rows=len(store),
        n_failed=len(store.failures),
        size_bytes=store.size_bytes,
        **_identity(store),
        seconds=json.dumps(_stage_seconds(store), sort_keys=True),
        created=str(store.document.get("created", "")),
    )
    keys = store.row_keys()
    segments, rows = zip(*map(store.locate, keys), strict=True) if keys else ((), ())
    stored = {
        "fingerprint": pa.array([store.fingerprint] * len(keys), pa.string()),
        "sha256": pa.array(keys, pa.string()),
        "segment": pa.array(segments, pa.string()),
        "row": pa.array(rows, pa.int32()),
    }
    failed = {
        "fingerprint": pa.array([store.fingerprint] * len(store.failures), pa.string()),
        "sha256": pa.array(list(store.failures), pa.string()),
        "reason": pa.array(list(store.failures.values()), pa.string()),
    }
    return {
        "encoders": one_row(row),
        "internal.stored_rows": pa.table(stored),
        "internal.stored_failures": pa.table(failed),
    }


def _identity(store: EmbeddingStore) -> dict[str, str]:
    identity, spec = store.document["identity"], store.document.get("spec", {})
    names = {"weights": "weights_sha256"}
    return {
        **{
            names.get(name, name): str(identity.get(name, ""))
            for name in ("architecture", "output", "precision", "weights")
        },
        "licence": str(spec.get("weights", {}).get("licence", "")),
        "preprocess": json.dumps(identity.get("preprocess"), sort_keys=True),
    }


def _stage_seconds(store: EmbeddingStore) -> dict[str, float]:
    seconds: dict[str, float] = {}
    for record in store.records:
        # A record of a repair has no times.
        for stage, spent in record.context.get("seconds", {}).items():
            seconds[stage] = round(seconds.get(stage, 0.0) + float(spent), 3)
    return seconds


def view_name(encoder: str) -> str:
    """Return the name of an encoder's own view: `embeddings_`, other characters as `_`."""
    return f"{COMMON_VIEW}_" + re.sub(r"\W", "_", encoder)


def register_embeddings(
    connection: duckdb.DuckDBPyConnection, stores: Sequence[EmbeddingStore], names: Sequence[str]
) -> None:
    """Register the views of embeddings that a query names; only their stores are read.

    Parameters
    ----------
    connection
        A connection to a catalog.
    stores
        Every store of the workspace.
    names
        Names of views, in lower case; names of no view are passed over.
    """
    views = stores_by_view(stores)
    wanted = {name: views[name] for name in names if name in views}
    if not wanted:
        return
    images = connection.sql("SELECT image_id, sha256 FROM images").to_arrow_table()
    tables = {
        store.fingerprint: embedding_table(store, images)
        for store in stores
        if any(store in members for members in wanted.values())
    }
    for name, members in wanted.items():
        connection.register(name, _union([tables[store.fingerprint] for store in members]))


def stores_by_view(stores: Sequence[EmbeddingStore]) -> dict[str, list[EmbeddingStore]]:
    """Return the stores whose rows each view has, by the view's name in lower case.

    Where a name stands for several stores (several fingerprints of an encoder, or names that differ
    in punctuation only), its view has the rows of all of them, and each has a view of its own too,
    whose name ends with the first twelve digits of its fingerprint.
    """
    views: dict[str, list[EmbeddingStore]] = {COMMON_VIEW: list(stores)}
    for store in stores:
        # SQL does not tell cases apart: names that differ in case only are one view.
        views.setdefault(view_name(store.name).lower(), []).append(store)
    for name, members in list(views.items()):
        if name != COMMON_VIEW and len(members) > 1:
            for store in members:  # an encoder may have such a name by itself
                views.setdefault(f"{name}_{store.fingerprint[:12]}", []).append(store)
    return views


def embedding_table(store: EmbeddingStore, images: pa.Table) -> pa.Table:
    """Return an encoder's rows as a table: image_id, encoder, fingerprint, vector FLOAT[dim].

    Parameters
    ----------
    store
        The encoder's store.
    images
        Columns `image_id` and `sha256`. Images that the store does not hold are left out.
    """
    pairs = zip(images["image_id"].to_pylist(), images["sha256"].to_pylist(), strict=True)
    stored = [(image_id, key) for image_id, key in pairs if key in store]
    names = {"encoder": store.name, "fingerprint": store.fingerprint}
    vectors = store.read([key for _, key in stored])
    return _embedding_table([image_id for image_id, _ in stored], names, vectors)


def _embedding_table(
    image_id: Sequence[str], names: Mapping[str, str], vectors: np.ndarray
) -> pa.Table:
    n, dim = vectors.shape
    return pa.table(
        {
            "image_id": pa.array(image_id, pa.string()),
            **{name: pa.array([value] * n, pa.string()) for name, value in names.items()},
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
        }
    )


def _union(tables: Sequence[pa.Table]) -> pa.Table:
    """Return one table of all rows; arrays of different lengths have no common type, lists have."""
    if not tables:
        no_rows = np.empty((0, 1), np.float32)
        tables = [_embedding_table([], {"encoder": "", "fingerprint": ""}, no_rows)]
    # Without rows the length of an array would be a false promise, so it is a list then too.
    if len({table.schema.field("vector").type for table in tables}) != 1 or not len(tables[0]):
        tables = [_with_lists(table) for table in tables]
    return pa.concat_tables(tables)


def _with_lists(table: pa.Table) -> pa.Table:
    vector = table["vector"].cast(pa.list_(pa.float32()))
    return table.set_column(table.schema.get_field_index("vector"), "vector", vector)
