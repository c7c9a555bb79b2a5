"""What this release expects of the values in a run's record, by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from embedcache.files.shapes import (
    Shape,
    fits,
    is_count,
    is_mapping,
    is_text,
    is_whole,
    list_of,
    optional,
)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or is_whole(value)


def _is_table_file(value: Any) -> bool:
    """Tell whether a value is a file's name, size and CRC-32C; version 1 had no names."""
    if not isinstance(value, list) or len(value) not in {2, 3}:
        return False
    is_named = len(value) == 2 or (is_text(value[0]) and "/" not in value[0])
    return is_named and all(map(is_whole, value[-2:]))


def _are_table_files(value: Any) -> bool:
    return is_mapping(value) and all(map(_is_table_file, value.values()))


def _are_results(value: Any) -> bool:
    return is_mapping(value) and fits(value, {"notes": list_of(is_text), "n_skipped": is_count})


RECORD: Final[Shape] = {
    "kind": is_text,
    "encoder": is_text,
    "fingerprint": is_text,
    "question": is_mapping,
    "method": is_mapping,
    "constants": is_mapping,
    "n_resamples": is_count,
    "data": is_mapping,
    "results": _are_results,
    "versions": is_mapping,
    "created": is_text,
    "seconds": _is_number,
    "tables": _are_table_files,
}
QUESTION: Final[Shape] = {
    "label": is_text,
    "task": is_text,
    "train_cohort": optional(is_text),
    "external": optional(list_of(is_text)),
    "where": optional(is_text),
    "class_map": optional(is_text),
    "classes": optional(is_mapping),
    "n_folds": optional(is_count),
    "folds_by": optional(is_text),
    "seed": is_whole,
    "official_split": _is_truth,
}
DATA: Final[Shape] = {
    "train": optional(is_text),
    "external": list_of(is_text),
    "folds_id": optional(is_text),
    "manifest": is_text,
    "pictures": optional(is_text),
}
# By the tag of the method.
METHODS: Final[Mapping[str, Shape]] = {
    "probe": {
        "probe": is_text,
        "protocol": is_text,
        "rule": is_text,
        "external_by": is_text,
        "grid": optional(list_of(_is_number)),
        "seed": is_whole,
    },
    "finetune": {"regime": is_text, "recipe": is_mapping},
    "zeroshot": {"prompts": list_of(is_mapping), "logit_scale": _is_number},
    "curve": {"sizes": optional(list_of(is_count)), "n_draws": is_count},
}
