"""Encoders that a fine-tuning run has kept: `run:ID:FOLD`, or `run:ID` for those of all folds."""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from embedcache.encoders.spec import EncoderSpec, WeightsSource
from embedcache.errors import EncoderWeightsError, LeakageError, StoreCorruptError
from embedcache.files.backend import Location, on_disk
from embedcache.files.digests import DigestCache
from embedcache.files.documents import known_shape, read_document, seal
from embedcache.files.durable import TEMPORARY, fsync, fsync_tree, make_folder, write_error
from embedcache.files.kinds import Ages, ArtefactKind, Damage, Mended, size_of, sweep_temporaries
from embedcache.files.locks import if_unmarked
from embedcache.workspace import Workspace

PREFIX: Final = "run:"
_log = logging.getLogger(__name__)
_DOCUMENT: Final = "encoders.json"
_WEIGHTS_FILE: Final = re.compile(r"fold-\d+\.safetensors")


@dataclass(frozen=True, slots=True)
class Seen:
    """What an encoder must not be asked about.

    Parameters
    ----------
    patients
        Names of patients.
    images
        SHA-256 of their images, which stay what they are under another patient's name.
    """

    patients: frozenset[str] = frozenset()
    images: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Trained:
    """One fold's encoder.

    Parameters
    ----------
    fold
        Number of the fold, from 0.
    file
        Safetensors file of the weights.
    seen
        Patients and images that moved or chose the weights.
    """

    fold: int
    file: Path
    seen: Seen


def keep_encoders(
    workspace: Workspace, run_id: str, base: EncoderSpec, trained: Sequence[Trained]
) -> None:
    """Keep the weights of a run's encoders.

    Parameters
    ----------
    workspace
        Workspace of the run.
    run_id
        Name of the run.
    base
        Encoder that training started from; what it has seen, these have seen too.
    trained
        Encoder of each fold; its file is copied.
    """
    folder = workspace.weights / run_id
    digests, before = DigestCache(), seen_by(workspace, base)
    workspace.create_store()
    entries = []
    try:
        make_folder(folder)
        for encoder in trained:
            # A copy: the training's own folder is removed once its run is published.
            target = folder / f"fold-{encoder.fold}.safetensors"
            shutil.copyfile(encoder.file, target)
            entries.append(
                {
                    "fold": encoder.fold,
                    "file": target.name,
                    "sha256": digests.file_digest(target),
                    "trained_on": sorted(before.patients | encoder.seen.patients),
                    "trained_on_images": sorted(before.images | encoder.seen.images),
                }
            )
        fsync_tree(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    document = {"run_id": run_id, "spec": base.document(), "encoders": entries}
    _document_of(folder).replace(seal(document))  # last: what it names is there
    fsync(folder)


def _document_of(folder: Path) -> Location:
    return on_disk(folder) / _DOCUMENT


def seen_by(workspace: Workspace, spec: EncoderSpec) -> Seen:
    """Return what an encoder was fine-tuned on here; nothing of a published one.

    Releases before this one kept the patients only, which the log says.

    Raises
    ------
    StoreCorruptError
        The document beside the weights is missing or damaged, so nobody can tell.
    """
    if spec.weights.kind != "run":
        return Seen()
    document = _document_of(workspace.weights / spec.weights.location)
    for entry in read_document(document)["encoders"]:
        if entry["file"] == spec.weights.file:
            if "trained_on_images" not in entry:
                _log.warning(
                    "'%s' was kept without the digests of its training images: under other patient "
                    "ids they are not recognised; train it again with --save",
                    spec.name,
                )
            images = frozenset(entry.get("trained_on_images", ()))
            return Seen(frozenset(entry["trained_on"]), images)
    raise StoreCorruptError(f"{document}: says nothing of {spec.weights.file}; train it again")


def has_encoders(workspace: Workspace, run_id: str) -> bool:
    """Tell whether a run's encoders were kept."""
    return _document_of(workspace.weights / run_id).exists()


def kept_encoders(workspace: Workspace, name: str) -> list[tuple[EncoderSpec, Path]]:
    """Return facts and weights of `run:ID:FOLD`, or of all folds of `run:ID`.

    Raises
    ------
    EncoderWeightsError
        There is no such run, fold, or it kept no weights.
    """
    run_id, _, fold = name.removeprefix(PREFIX).partition(":")
    folder = workspace.weights / run_id
    if not workspace.has_run(run_id):
        raise EncoderWeightsError(
            f"no run '{run_id}' in {workspace.store}; `embedcache sql \"FROM runs\"` lists them"
        )
    if not has_encoders(workspace, run_id):
        raise EncoderWeightsError(
            f"run '{run_id}' kept no weights; run the same `embedcache finetune` again with --save"
        )
    document = read_document(_document_of(folder))
    files = {str(entry["fold"]): str(entry["file"]) for entry in document["encoders"]}
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
    workspace: Workspace,
    spec: EncoderSpec,
    patient_id: Sequence[str],
    image_id: Sequence[str],
    keys: Sequence[str | None],
) -> None:
    """Check that a fine-tuned encoder is asked about patients and images that it has not seen.

    Parameters
    ----------
    workspace, spec
        Workspace of the run that has kept the encoder, and facts of the encoder.
    patient_id, image_id, keys
        Patient, name and SHA-256 of each image that is asked about; None where it is not known.

    Raises
    ------
    LeakageError
        It was trained on one of them, or the encoder was that its training started from.
    StoreCorruptError
        Nobody can tell any more.
    """
    seen = seen_by(workspace, spec)
    shared = seen.patients & set(patient_id)
    if shared:
        raise LeakageError(
            f"'{spec.name}' was trained on {len(shared)} of these patients; ask about patients of "
            "its own fold or of another cohort, with --train-cohort, --external or --where"
        )
    repeated = [image for image, key in zip(image_id, keys, strict=True) if key in seen.images]
    if repeated:
        raise LeakageError(
            f"'{spec.name}' was trained on image '{repeated[0]}' under another patient id "
            f"({len(repeated)} images are); leave them out with --where"
        )


class KeptWeights(ArtefactKind):
    """The weights that fine-tuning runs of a workspace have kept, one folder a run.

    Parameters
    ----------
    workspace
        Workspace of the runs.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return "kept weights"

    @property
    def folder(self) -> Location:
        """The folder in which all of them lie."""
        return on_disk(self._workspace.weights)

    def items(self) -> Sequence[Location]:
        """Return the folder of each run that has kept its weights."""
        return [folder for folder in self.folder.folders() if (folder / _DOCUMENT).exists()]

    def check(self, item: Location) -> Iterator[Damage]:
        """Compare a run's weights with their digests."""
        try:
            document = read_document(item / _DOCUMENT)
        except StoreCorruptError as error:
            yield Damage(item / _DOCUMENT, error.problem)
            return
        digests = DigestCache()
        with known_shape(item / _DOCUMENT):
            for entry in document["encoders"]:
                file = item / str(entry["file"])
                if not file.exists():
                    yield Damage(file, "is missing")
                elif digests.file_digest(Path(file)) != entry["sha256"]:
                    yield Damage(file, "does not match its checksum")

    def mend(self, item: Location) -> Mended:
        """Remove a run's weights: the same command with `--save` makes them again."""
        item.delete()
        return Mended(f"{item} removed; make it again with the same `embedcache finetune --save`")

    def sweep(self, grace_s: float) -> int:
        """Delete weights whose document was never written: the leftover of a killed `--save`."""
        folders = [folder for folder in self.folder.folders() if _is_leftover(folder)]
        freed = sum(sweep_temporaries(place, grace_s) for place in (self.folder, *self.items()))
        if not folders:
            return freed
        ages = Ages(self.folder)
        with if_unmarked(self._workspace.training) as is_unused:  # or a training may be saving them
            for folder in folders if is_unused else ():
                entries = folder.list(hidden=True)
                if all(ages.is_over(entry.modified_ns, grace_s) for entry in entries):
                    freed += size_of(folder)
                    folder.delete()
        return freed

    def is_under_way(self, name: str) -> bool:
        """Tell whether weights are being saved in a folder, or were when a writer was killed."""
        return _is_leftover(self.folder / name) or super().is_under_way(name)


def _is_leftover(folder: Location) -> bool:
    """Tell whether a folder has weights alone: a file of another name was put there by somebody."""
    names = [entry.name for entry in folder.list(hidden=True)]
    return bool(names) and all(
        name.startswith(TEMPORARY) or _WEIGHTS_FILE.fullmatch(name) for name in names
    )
