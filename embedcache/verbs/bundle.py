"""A zip for a bug report: what is known to hold nothing of patients, and nothing else.

Every field is named here. What is not named is left out, so that a field that a later release adds
does not leave by itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from embedcache.encoder_folders import ENCODER_DOCUMENT
from embedcache.encoders.models import BUILTIN
from embedcache.errors import EmbedcacheError, RunError
from embedcache.files.backend import Location
from embedcache.files.documents import read_document
from embedcache.files.durable import replace
from embedcache.verbs.observations import Place
from embedcache.workspace import RUN_DOCUMENT

if TYPE_CHECKING:
    from embedcache.verbs.doctor import DoctorReport

CONTENT: Final = (
    "versions and findings (without paths), number and bytes of files by kind, and of encoders and "
    "runs the settings; no patient, image, path, label, cohort, query, prediction or weight"
)
_ENCODER: Final = ("fingerprint", "versions", "created")
_IDENTITY: Final = ("output", "dim", "preprocess", "weights", "precision", "dtype")
_SPEC: Final = ("dim", "parameters", "memory_gb")
_RUN: Final = ("kind", "fingerprint", "n_resamples", "versions", "created", "seconds")
_QUESTION: Final = ("task", "n_folds", "seed", "official_split")
_METHOD: Final = (
    *("tag", "probe", "protocol", "rule", "external_by", "seed", "regime", "precision", "epochs"),
    *("batch_size", "n_draws", "n_devices"),
)
_FOLDERS: Final = (
    "encoders",
    "folds",
    "manifests",
    "runs",
    "pixels",
    "training",
    "weights",
    "logs",
)


def write_bundle(place: Place, report: DoctorReport, file: Path) -> None:
    """Write the zip.

    Raises
    ------
    RunError
        The file is there already.
    StoreWriteError
        The file system refused.
    """
    if file.exists():
        raise RunError(f"{file} is there already; name a new file as --bundle")
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr(
            "README.txt", f"Written by `embedcache doctor --bundle`. Holds {CONTENT}.\n"
        )
        for name, value in _parts(place, report):
            bundle.writestr(name, json.dumps(value, indent=1))
    replace(file, content.getvalue())


def _parts(place: Place, report: DoctorReport) -> Iterator[tuple[str, Any]]:
    yield (
        "doctor.json",
        [
            {
                "topic": finding.topic,
                "subject": finding.subject if finding.is_public else finding.topic,
                "status": finding.status,
                "message": finding.message if finding.is_public else "(left out: may hold a path)",
            }
            for finding in report.findings
        ],
    )
    workspace = place.workspace
    # Whatever cannot be read is in the findings.
    with contextlib.suppress(EmbedcacheError, OSError):
        yield "store.json", _layout(workspace.store)
    with contextlib.suppress(EmbedcacheError, OSError):
        for number, folder in enumerate(workspace.encoder_folders()):
            document = _readable(folder / ENCODER_DOCUMENT)
            yield f"encoders/{number}.json", _encoder(document)
    with contextlib.suppress(EmbedcacheError, OSError):
        for number, folder in enumerate(workspace.runs.folders()):
            yield f"runs/{number}.json", _run(_readable(folder / RUN_DOCUMENT))


def _readable(file: Location) -> dict[str, Any]:
    try:
        return read_document(file)
    except EmbedcacheError:
        return {}


def _layout(store: Location) -> dict[str, dict[str, int]]:
    """Return the number and the bytes of files by the folder of the store that they are in."""
    n_files: Counter[str] = Counter()
    n_bytes: Counter[str] = Counter()
    for entry in store.list(deep=True, hidden=True):
        folder = entry.name.partition("/")[0]
        part = folder if folder in _FOLDERS else "(other)"
        n_files[part] += 1
        n_bytes[part] += entry.size
    return {part: {"files": n_files[part], "bytes": n_bytes[part]} for part in sorted(n_files)}


def _encoder(document: Mapping[str, Any]) -> dict[str, Any]:
    name = str(document.get("name", ""))
    return {
        "name": _public_name(name),
        **_only(document, _ENCODER),
        "identity": _only(document.get("identity"), _IDENTITY),
        "spec": _only(document.get("spec"), _SPEC),
    }


def _run(document: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "encoder": _public_name(str(document.get("encoder", ""))),
        **_only(document, _RUN),
        "question": _only(document.get("question"), _QUESTION),
        "method": _only(document.get("method"), _METHOD),
    }


def _public_name(name: str) -> str:
    """Return the name of an encoder that everybody knows; others may hold anything."""
    plain = name.removeprefix("random:")
    is_library = plain.startswith(("timm:", "open_clip:")) and "-dir:" not in plain
    return name if plain in BUILTIN or is_library else "(an encoder of the user's)"


def _only(document: Any, names: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(document, Mapping):
        return {}
    return {name: document[name] for name in names if name in document}
