"""What this release expects of the values in a run's record, by key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

Check: TypeAlias = Callable[[Any], bool]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_truth(value: Any) -> bool:
    return isinstance(value, bool)


def _is_mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def _is_count(value: Any) -> bool:
    return _is_whole(value) and 0 <= value < 2**31


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_whole(value)


def _optional(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and all(map(check, value))


def _is_table_file(value: Any) -> bool:
    """Tell whether a value is a file's name, size and CRC-32C; version 1 had no names."""
    if not isinstance(value, list) or len(value) not in {2, 3}:
        return False
    is_named = len(value) == 2 or (_is_text(value[0]) and "/" not in value[0])
    return is_named and all(map(_is_whole, value[-2:]))


def _are_table_files(value: Any) -> bool:
    return _is_mapping(value) and all(map(_is_table_file, value.values()))


def _are_results(value: Any) -> bool:
    return _is_mapping(value) and fits(value, {"notes": _list_of(_is_text), "n_skipped": _is_count})


RECORD: Final[Mapping[str, Check]] = {
    "kind": _is_text,
    "encoder": _is_text,
    "fingerprint": _is_text,
    "question": _is_mapping,
    "method": _is_mapping,
    "constants": _is_mapping,
    "n_resamples": _is_count,
    "data": _is_mapping,
    "results": _are_results,
    "versions": _is_mapping,
    "created": _is_text,
    "seconds": _is_number,
    "tables": _are_table_files,
}
QUESTION: Final[Mapping[str, Check]] = {
    "label": _is_text,
    "task": _is_text,
    "train_cohort": _optional(_is_text),
    "external": _optional(_list_of(_is_text)),
    "where": _optional(_is_text),
    "class_map": _optional(_is_text),
    "classes": _optional(_is_mapping),
    "n_folds": _optional(_is_count),
    "seed": _is_whole,
    "official_split": _is_truth,
}
DATA: Final[Mapping[str, Check]] = {
    "train": _optional(_is_text),
    "external": _list_of(_is_text),
    "folds_id": _optional(_is_text),
    "manifest": _is_text,
    "pictures": _optional(_is_text),
}
# By the tag of the method.
METHODS: Final[Mapping[str, Mapping[str, Check]]] = {
    "probe": {
        "probe": _is_text,
        "protocol": _is_text,
        "rule": _is_text,
        "external_by": _is_text,
        "grid": _optional(_list_of(_is_number)),
        "seed": _is_whole,
    },
    "finetune": {"regime": _is_text, "recipe": _is_mapping},
    "zeroshot": {"prompts": _list_of(_is_mapping), "logit_scale": _is_number},
    "curve": {"sizes": _optional(_list_of(_is_count)), "n_draws": _is_count},
}


def fits(document: Mapping[str, Any], shape: Mapping[str, Check]) -> bool:
    """Tell whether each value that a shape knows is as it expects; a key may be absent."""
    return all(check(document[key]) for key, check in shape.items() if key in document)
