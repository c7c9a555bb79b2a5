"""Which stored runs can be held against each other: those on the same images, labels and folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from embedcache.data.predictions import Predictions
from embedcache.errors import RunError
from embedcache.runs import files as run_files
from embedcache.workspace import Workspace

_TASK: Final = "classification"
# Runs with a class for each image that are models, not controls.
_KINDS: Final = frozenset({"probe", "zeroshot", "finetune"})


@dataclass(frozen=True, slots=True)
class Contender:
    """A run with what it predicted.

    Parameters
    ----------
    record
        Its `run.json`.
    cohorts
        By name, that of the training cohort first; images sorted by name.
    """

    record: Mapping[str, Any]
    cohorts: Mapping[str, Predictions]

    @property
    def run_id(self) -> str:
        """Its name."""
        return str(self.record["run_id"])

    @property
    def trained_on(self) -> str | None:
        """The cohort that it predicted out of fold; None where it was trained on none."""
        return next((name for name, one in self.cohorts.items() if one.role == "in-domain"), None)


def choose_runs(
    workspace: Workspace, models: Sequence[str] | None, runs: Sequence[str] | None
) -> tuple[dict[str, Contender], Mapping[str, Predictions], list[str]]:
    """Return the runs to compare, the cohorts to compare them on, and notes.

    Each run has the shortest name that tells it apart. The first that was trained leads: cohorts
    are its own, and a run on other images, labels or folds of them is left out.

    Parameters
    ----------
    models
        Encoders; None is all. The latest run of each and of each kind of probe that fits counts;
        controls do not, nor do runs of another task than classification.
    runs
        Ids of runs, instead; of controls too.

    Raises
    ------
    RunError
        There is no such run.
    """
    records = _candidates(workspace, models, runs)
    leader = next((one for one in records if one["settings"].get("train_cohort")), records[0])
    first = _load(workspace, leader)
    chosen: dict[Any, Contender] = {}
    left_out: dict[Any, str] = {}
    for record in (leader, *records):
        key = record["run_id"] if runs else _method(record)
        if key in chosen:
            continue
        one = _load(workspace, record)
        reason = _difference(first, one)
        if reason:
            left_out.setdefault(key, f"{one.run_id} left out: {reason} than {first.run_id}")
        else:
            chosen[key] = one
    notes = [note for key, note in left_out.items() if key not in chosen]
    return _named(list(chosen.values())), first.cohorts, notes


def _candidates(
    workspace: Workspace, models: Sequence[str] | None, runs: Sequence[str] | None
) -> list[dict[str, Any]]:
    """Return the records of the runs that were asked for: as named, or the newest first."""
    records = {one.name: run_files.read_run(one) for one in run_files.run_folders(workspace.runs)}
    real = [one for one in records.values() if one["kind"] in _KINDS and _task(one) == _TASK]
    if not real and not runs:
        raise RunError(f"{workspace.store} holds no runs to compare; run `embedcache probe -m all`")
    for run_id in runs or ():
        if run_id not in records:
            raise RunError(
                f"no run '{run_id}' in {workspace.store}; `embedcache sql \"FROM runs\"` lists "
                f"the {len(records)} that it holds"
            )
        if _task(records[run_id]) != _TASK:
            raise RunError(f"run '{run_id}' is of {_task(records[run_id])}; expected {_TASK}")
        if records[run_id]["kind"] == "curve":
            raise RunError(f"run '{run_id}' is a learning curve; expected a probe or zeroshot")
    if runs:
        return [records[run_id] for run_id in dict.fromkeys(runs)]
    newest = sorted(real, key=lambda one: (one["created"], one["run_id"]))[::-1]
    for model in models or ():
        if not any(_is_of(one, model) for one in newest):
            held = ", ".join(sorted({one["encoder"] for one in newest}))
            raise RunError(f"no run of '{model}'; there are runs of {held}")
    wanted = models or ("all",)
    return [one for one in newest if any(_is_of(one, model) for model in wanted)]


def _task(record: Mapping[str, Any]) -> str:
    return str(record["settings"].get("task", _TASK))


def _is_of(record: Mapping[str, Any], model: str) -> bool:
    name, _, prefix = model.partition("@")
    same = record["encoder"].replace("_", "-") == name.replace("_", "-")
    return model == "all" or (same and record["fingerprint"].startswith(prefix))


def _method(record: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return what another run of the same would be a newer version of."""
    return record["encoder"], record["fingerprint"], _regime(record)


def _regime(record: Mapping[str, Any]) -> str:
    """Return what was done with the embeddings: the kind of probe, or of run."""
    if record["kind"] == "finetune":
        return str(record["settings"]["regime"])
    settings = record["settings"].get("probe")
    if record["kind"] != "probe" or settings is None:
        return str(record["kind"])
    usual = {"protocol": "default", "rule": "tie", "external": "refit", "grid": None, "seed": 0}
    given = {key: settings.get(key, value) for key, value in usual.items()}
    words = {"protocol": "{}", "rule": "{}", "external": "external by {}"}
    asked = [
        words.get(key, key + " {}").format(value)
        for key, value in given.items()
        if value != usual[key]
    ]
    return ", ".join([settings["probe"], *asked])


def _load(workspace: Workspace, record: Mapping[str, Any]) -> Contender:
    cohorts = {}
    for one in run_files.read_predictions(workspace.runs / record["run_id"]):
        cohorts[one.cohort[0]] = one.take(np.argsort(one.image_id))
    return Contender(record, cohorts)


def _difference(first: Contender, other: Contender) -> str:
    """Return what keeps two runs from being compared, '' where nothing does."""
    trained = other.trained_on
    if trained and first.trained_on not in {None, trained}:
        return f"trained on another cohort ('{trained}')"
    shared = [name for name in first.cohorts if name in other.cohorts]
    if not shared:
        return "other cohorts"
    for name in shared:
        ours, theirs = first.cohorts[name], other.cohorts[name]
        if ours.image_id != theirs.image_id:
            n_ours, n_theirs = len(ours.image_id), len(theirs.image_id)
            return f"other images of '{name}' ({n_theirs}, not {n_ours})"
        if (ours.patient_id, ours.label) != (theirs.patient_id, theirs.label):
            return f"other patients or labels in '{name}'"
        if ours.role == theirs.role and (ours.fold != theirs.fold).any():
            return f"other folds of '{name}'"
    return ""


def _named(chosen: Sequence[Contender]) -> dict[str, Contender]:
    """Give each run the shortest name that tells it from the others."""
    schemes = (
        lambda one: one["encoder"],
        lambda one: f"{one['encoder']} ({_regime(one)})",
        lambda one: f"{one['encoder']}@{one['fingerprint'][:12]} ({_regime(one)})",
        lambda one: one["run_id"],
    )
    is_mixed = len({_regime(one.record) for one in chosen}) > 1
    for scheme in schemes[is_mixed:]:
        named = {scheme(one.record): one for one in chosen}
        if len(named) == len(chosen):
            break
    return dict(sorted(named.items()))
