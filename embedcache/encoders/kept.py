"""Encoders that a fine-tuning run has kept: `run:ID:FOLD`, or `run:ID` for those of all folds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from embedcache.encoders.spec import EncoderSpec, WeightsSource
from embedcache.errors import EncoderWeightsError, LeakageError, StoreCorruptError
from embedcache.files.digests import DigestCache
from embedcache.files.durable import fsync_tree, read_document, seal_document
from embedcache.files.durable import replace as renew
from embedcache.workspace import Workspace

PREFIX: Final = "run:"
_DOCUMENT: Final = "encoders.json"


@dataclass(frozen=True, slots=True)
class Trained:
    """One fold's encoder: its weights, and whose pictures moved or chose them."""

    fold: int
    file: Path
    patients: tuple[str, ...]


def keep_encoders(
    workspace: Workspace, run_id: str, base: EncoderSpec, trained: Sequence[Trained]
) -> None:
    """Keep the weights of a run's encoders.

    Parameters
    ----------
    base
        The encoder that training started from; what that was trained on, these were too.
    trained
        Their files are copied.
    """
    folder = workspace.weights / run_id
    folder.mkdir(parents=True, exist_ok=True)
    digests, before = DigestCache(), seen_by(workspace, base)
    kept = []
    for one in trained:
        target = folder / f"fold-{one.fold}.safetensors"
        shutil.copyfile(one.file, target)
        digest, seen = digests.file_digest(target), sorted(before | set(one.patients))
        kept.append({"fold": one.fold, "file": target.name, "sha256": digest, "trained_on": seen})
    fsync_tree(folder)
    document = {"run_id": run_id, "spec": base.document(), "encoders": kept}
    renew(folder / _DOCUMENT, seal_document(document))  # last: what it names is there
    fsync_tree(folder)


def seen_by(workspace: Workspace, spec: EncoderSpec) -> frozenset[str]:
    """Return the patients that an encoder was fine-tuned on here; none of a published one.

    Raises
    ------
    StoreCorruptError
        What was written of it is missing or damaged, so nobody can tell.
    """
    if spec.weights.kind != "run":
        return frozenset()
    path = workspace.weights / spec.weights.location / _DOCUMENT
    for one in read_document(path)["encoders"]:
        if one["file"] == spec.weights.file:
            return frozenset(one["trained_on"])
    raise StoreCorruptError(f"{path}: says nothing of {spec.weights.file}; train it again")


def has_encoders(workspace: Workspace, run_id: str) -> bool:
    """Tell whether a run's encoders were kept."""
    return (workspace.weights / run_id / _DOCUMENT).exists()


def kept_encoders(workspace: Workspace, name: str) -> list[tuple[EncoderSpec, Path]]:
    """Return facts and weights of `run:ID:FOLD`, or of all folds of `run:ID`.

    Raises
    ------
    EncoderWeightsError
        There is no such run, fold, or it kept no weights.
    """
    run_id, _, fold = name.removeprefix(PREFIX).partition(":")
    folder = workspace.weights / run_id
    if not (workspace.runs / run_id).is_dir():
        raise EncoderWeightsError(
            f"no run '{run_id}' in {workspace.store}; `embedcache sql \"FROM runs\"` lists them"
        )
    if not has_encoders(workspace, run_id):
        raise EncoderWeightsError(
            f"run '{run_id}' kept no weights; run the same `embedcache finetune` again with --save"
        )
    document = read_document(folder / _DOCUMENT)
    files = {str(one["fold"]): str(one["file"]) for one in document["encoders"]}
    if fold and fold not in files:
        raise EncoderWeightsError(
            f"run '{run_id}' has no fold '{fold}'; expected one of {', '.join(files)}"
        )
    base = EncoderSpec.from_document(document["spec"])
    return [
        (_of_fold(base, run_id, number, files[number]), folder / files[number])
        for number in ([fold] if fold else files)
    ]


def _of_fold(base: EncoderSpec, run_id: str, number: str, file: str) -> EncoderSpec:
    weights = WeightsSource(
        kind="run",
        location=run_id,
        file=file,
        licence=base.weights.licence,
        commercial=base.weights.commercial,
    )
    return replace(
        base,
        name=f"{PREFIX}{run_id}:{number}",
        weights=weights,
        reference=f"'{base.name}', fine-tuned by run {run_id}",
        overlap=f"trained on the patients that fold {number} of {run_id} does not test",
    )


def check_not_trained_on(
    workspace: Workspace, spec: EncoderSpec, patient_id: Sequence[str]
) -> None:
    """Check that a fine-tuned encoder is asked about patients that it has not seen.

    Raises
    ------
    LeakageError
        It was trained on one of them, or the encoder was that its training started from.
    StoreCorruptError
        Nobody can tell any more.
    """
    shared = sorted(seen_by(workspace, spec) & set(patient_id))
    if shared:
        raise LeakageError(
            f"'{spec.name}' was trained on patient '{shared[0]}' ({len(shared)} patients are); ask "
            "about patients of its own fold or of another cohort, with --train-cohort, --external "
            "or --where"
        )


def check_encoders(workspace: Workspace) -> Iterator[tuple[Path, str]]:
    """Yield each kept file that is damaged or missing, and what is wrong with it."""
    digests = DigestCache()
    for document in sorted(workspace.weights.glob(f"*/{_DOCUMENT}")):
        try:
            kept = read_document(document)["encoders"]
        except StoreCorruptError:
            yield document, "does not match its checksum"
            continue
        for one in kept:
            path = document.parent / str(one["file"])
            if not path.exists():
                yield path, "is missing"
            elif digests.file_digest(path) != one["sha256"]:
                yield path, "does not match its checksum"
