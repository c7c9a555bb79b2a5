"""Records of format version 1: one dictionary of settings, told apart by the kind of run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from embedcache.data.question import Question
from embedcache.runs.methods import (
    CurveMethod,
    FinetuneMethod,
    Method,
    ProbeMethod,
    UnknownMethod,
    ZeroShotMethod,
)
from embedcache.runs.request import RunData, RunRequest

_OFFICIAL: Final = "fetalclip-like-1"  # the one protocol with the official split
_CONSTANTS: Final = ("protocol", "values", "tol", "logit_scale")


def request_of_version_1(document: Mapping[str, Any]) -> RunRequest:
    """Return what a record of version 1 was asked for."""
    settings = document["settings"]
    return RunRequest(
        kind=str(document["kind"]),
        encoder=str(document["encoder"]),
        fingerprint=str(document["fingerprint"]),
        question=_question(settings),
        method=_method(str(document["kind"]), settings),
        data=RunData.from_document(document["data"]),
        constants={name: settings[name] for name in _CONSTANTS if name in settings},
        n_resamples=int(settings.get("n_resamples", 0)),
        versions=document["versions"],
    )


def _question(settings: Mapping[str, Any]) -> Question:
    train_cohort = settings.get("train_cohort")
    is_official = settings.get("protocol") == _OFFICIAL
    external = settings.get("external", ())
    if is_official:
        external = [name for name in external if name != f"{train_cohort}, test split"]
    return Question(
        label=settings.get("label", "label"),
        task=settings.get("task", "classification"),
        train_cohort=train_cohort,
        external=tuple(external),
        where=settings.get("where"),
        class_map=settings.get("class_map"),
        classes=settings.get("classes"),
        folds=settings.get("n_folds", 5),
        seed=settings.get("seed", 0),
        official_split=is_official,
    )


def _method(kind: str, settings: Mapping[str, Any]) -> Method:
    if kind == "zeroshot":
        return ZeroShotMethod(tuple(settings["prompts"]), settings["logit_scale"])
    if kind == "finetune":
        return FinetuneMethod(settings["regime"], settings["recipe"])
    if kind == "curve":
        sizes = settings.get("patients")
        return CurveMethod(None if sizes is None else tuple(sizes), settings["draws"])
    probe = settings.get("probe")
    if "c_grid" in settings:  # of the days when there was one probe
        return ProbeMethod(grid=tuple(settings["c_grid"]))
    if not isinstance(probe, Mapping):
        return UnknownMethod(settings)
    names = {"external": "external_by"}  # one word meant cohorts and a way of predicting them
    return ProbeMethod.from_document({names.get(str(key), str(key)): v for key, v in probe.items()})
