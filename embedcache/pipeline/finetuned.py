"""Encoders that a fine-tuning run has kept: `run:ID:FOLD`, or `run:ID` for those of all folds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from embedcache.catalog import run_files
from embedcache.digests import DigestCache
from embedcache.durable import find_table, fsync_tree, read_document, read_table, seal_document
from embedcache.durable import replace as renew
from embedcache.encoders.spec import EncoderSpec, WeightsSource
from embedcache.errors import EncoderWeightsError, LeakageError
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.workspace import Workspace

PREFIX: Final = "run:"
_DOCUMENT: Final = "encoders.json"


def keep_encoders(
    workspace: Workspace, run_id: str, base: EncoderSpec, trained: Sequence[Path]
) -> None:
    """Keep the weights of a run's encoders, one a fold.

    Parameters
    ----------
    base
        The encoder that training started from.
    trained
        A safetensors file a fold; copied.
    """
    folder = workspace.weights / run_id
    folder.mkdir(parents=True, exist_ok=True)
    digests = DigestCache()
    names = []
    for number, path in enumerate(trained):
        target = folder / f"fold-{number}.safetensors"
        shutil.copyfile(path, target)
        names.append([target.name, digests.file_digest(target)])
    document = {"run_id": run_id, "spec": base.document(), "files": names}
    renew(folder / _DOCUMENT, seal_document(document))  # last: what it names is there
    fsync_tree(folder)


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
    files = [str(file) for file, _ in document["files"]]
    if fold and fold not in map(str, range(len(files))):
        raise EncoderWeightsError(
            f"run '{run_id}' has no fold '{fold}'; expected 0 to {len(files) - 1}"
        )
    base = EncoderSpec.from_document(document["spec"])
    numbers = [int(fold)] if fold else range(len(files))
    return [
        (_of_fold(base, run_id, number, files[number]), folder / files[number])
        for number in numbers
    ]


def _of_fold(base: EncoderSpec, run_id: str, number: int, file: str) -> EncoderSpec:
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
    workspace: Workspace, store: EmbeddingStore, patient_id: Sequence[str]
) -> None:
    """Check that a fine-tuned encoder is asked about patients that it has not seen.

    Raises
    ------
    LeakageError
        It was trained on one of them.
    """
    spec = EncoderSpec.from_document(store.document["spec"])
    if spec.weights.kind != "run":
        return
    run = run_files.read_run(workspace.runs / spec.weights.location)
    table = find_table(workspace.folds, run["data"]["folds_id"])
    number = int(store.name.rpartition(":")[2])
    rows = read_table(table).to_pydict() if table else {"patient_id": [], "fold": []}
    seen = {p for p, fold in zip(rows["patient_id"], rows["fold"], strict=True) if fold != number}
    shared = sorted(seen & set(patient_id))
    if shared:
        raise LeakageError(
            f"'{store.name}' was trained on patient '{shared[0]}' ({len(shared)} patients are); "
            f"ask about patients of its fold {number} or of another cohort, with --train-cohort, "
            "--external or --where"
        )


def check_encoders(workspace: Workspace) -> Iterator[tuple[Path, str]]:
    """Yield each kept file that is damaged or missing, and what is wrong with it."""
    digests = DigestCache()
    for document in sorted(workspace.weights.glob(f"*/{_DOCUMENT}")):
        for name, digest in read_document(document)["files"]:
            path = document.parent / str(name)
            if not path.exists():
                yield path, "is missing"
            elif digests.file_digest(path) != digest:
                yield path, "does not match its checksum"
