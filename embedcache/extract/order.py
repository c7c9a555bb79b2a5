"""Rows in patient order: one segment, the rows of a patient together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from embedcache.data.image_table import Images
from embedcache.store.embedding_store import EmbeddingStore


def put_in_order(store: EmbeddingStore, images: Images, context: Mapping[str, Any]) -> bool:
    """Compact a store: one segment, rows by cohort, patient and image.

    Rows of images that are not in the manifest go last; `gc` drops them.

    Parameters
    ----------
    store
        Rows of one encoder.
    images
        The images of the manifest.
    context
        JSON values kept with the rows.

    Returns
    -------
    Whether there was anything to do.
    """
    columns = (images.table[name].to_pylist() for name in ("cohort", "patient_id", "image_id"))
    by_patient = sorted(zip(*columns, images.keys, strict=True))
    wanted = dict.fromkeys(key for *_, key in by_patient if key in store)
    order = [*wanted, *(key for key in store.row_keys() if key not in wanted)]
    if len(store.records) <= 1 and order == store.row_keys():
        return False
    notes = {k: v for record in store.records for k, v in record.context.get("notes", {}).items()}
    context = {**context, "seconds": stage_seconds(store), **({"notes": notes} if notes else {})}
    store.rewrite(order, context=context)
    return True


def stage_seconds(store: EmbeddingStore) -> dict[str, float]:
    """Return the seconds that each stage took over all passes."""
    spent: dict[str, float] = {}
    for record in store.records:
        for stage, seconds in record.context.get("seconds", {}).items():
            spent[stage] = round(spent.get(stage, 0.0) + seconds, 3)
    return spent


def seconds_per_image(store: EmbeddingStore) -> float | None:
    """Return the seconds an image took the encoder in earlier passes, or None."""
    timed = [record for record in store.records if "seconds" in record.context]
    n_rows = sum(len(record.keys) for record in timed)
    spent = sum(float(record.context["seconds"]["encode"]) for record in timed)
    return spent / n_rows if n_rows else None
