"""Probes of `doctor` that look at the machine and the installation."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from typing import Final

from embedcache.encoders import registry
from embedcache.encoders.devices import describe_devices
from embedcache.encoders.spec import EncoderSpec
from embedcache.encoders.weights import (
    check_registered,
    find_weights,
    is_registered,
    registered_file,
)
from embedcache.errors import EmbedcacheError, EncoderWeightsError
from embedcache.files.cores import usable_cores
from embedcache.files.digests import DigestCache
from embedcache.verbs.observations import Observation, Place

_DISTRIBUTION: Final = "embedcache-fm"
_REQUIREMENT: Final = re.compile(
    r"(?P<name>[A-Za-z0-9._-]+)[^;]*(;.*extra == ['\"](?P<extra>\w+))?"
)
_EXTRAS: Final = ("quickstart", "dicom", "finetune", "tensorboard")
# Variables by which a caller lets float32 be computed with fewer digits.
_TF32: Final = ("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "NVIDIA_TF32_OVERRIDE")


def versions(place: Place) -> Iterator[Observation]:
    """Look for what embedcache needs."""
    del place
    machine = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield _public("versions", "python", machine)
    for name in (_DISTRIBUTION, *_requirements()[""]):
        try:
            yield _public("versions", name, version(name))
        except PackageNotFoundError:
            remedy = f"run `pip install {name}`"
            yield Observation("versions", name, "problem", "not installed", remedy, is_public=True)


def extras(place: Place) -> Iterator[Observation]:
    """Look which optional parts are installed."""
    del place
    requirements = _requirements()
    for extra in _EXTRAS:
        missing = [name for name in requirements.get(extra, []) if not _is_installed(name)]
        message = f"not installed: {', '.join(missing)}" if missing else "installed"
        remedy = f'if you need it: pip install "{_DISTRIBUTION}[{extra}]"' if missing else ""
        yield Observation("extras", extra, "ok", message, remedy, is_public=True)


def _requirements() -> dict[str, list[str]]:
    """Return the distributions that are needed, by the extra that needs them; '' for all."""
    names: dict[str, list[str]] = {"": []}
    for line in requires(_DISTRIBUTION) or ():
        if match := _REQUIREMENT.match(line):
            names.setdefault(match["extra"] or "", []).append(match["name"])
    return names


def _is_installed(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def _public(topic: str, subject: str, message: str) -> Observation:
    return Observation(topic, subject, "ok", message, is_public=True)


def devices(place: Place) -> Iterator[Observation]:
    """Look at what encoders can run on."""
    del place
    threads = os.environ.get("OMP_NUM_THREADS")
    usable, cores = usable_cores(), os.cpu_count() or 1
    limit = f", OMP_NUM_THREADS is {threads}" if threads else ""
    yield _public("devices", "cores", f"{usable} of {cores} usable{limit}")
    names, troubles = describe_devices()
    for name in names:
        yield _public("devices", *name.split(", ", 1))
    remedy = "install torch's build for your GPU and its driver: https://pytorch.org/get-started"
    for trouble in troubles:
        yield Observation("devices", "gpu", "warning", trouble, remedy, is_public=True)
    for name in _TF32:
        if os.environ.get(name):
            message = f"{name} is {os.environ[name]}; encoders compute in full float32 all the same"
            yield _public("devices", "TF32", message)


def weights(place: Place) -> Iterator[Observation]:
    """Look which registered encoders have their weights here, and whether they are right."""
    del place
    present, absent = [], []
    for name in registry.registered():
        if ":" in name:  # another output of the same network
            continue
        try:
            if _has_weights(registry.find_spec(name)):
                present.append(name)
            else:
                absent.append(name)
        except (EmbedcacheError, OSError) as error:
            yield Observation("weights", name, "problem", str(error))
    yield _public("weights", "here", ", ".join(present) or "none")
    remedy = "`embedcache encoders show NAME` says where to get them"
    if absent:
        yield Observation("weights", "not here", "ok", ", ".join(absent), remedy, is_public=True)


def _has_weights(spec: EncoderSpec) -> bool:
    """Tell whether an encoder's weights are here; those that were registered must be right."""
    if not is_registered(spec):
        with contextlib.suppress(EncoderWeightsError):
            find_weights(spec, offline=True)
            return True
        return False
    file = registered_file(spec)
    check_registered(spec, file, DigestCache().file_digest(file))
    return True


def network(place: Place) -> Iterator[Observation]:
    """Look whether the hub that weights are fetched from can be reached."""
    from embedcache.encoders.hub import why_unreachable

    if place.offline:
        yield _public("network", "hub", "not asked, for --offline")
        return
    reason = why_unreachable()
    if not reason:
        yield _public("network", "hub", "can be reached")
        return
    remedy = (
        "weights that are not here cannot be fetched: set HTTPS_PROXY or HF_ENDPOINT, or download "
        "them elsewhere and run `embedcache weights add NAME FILE`"
    )
    yield Observation("network", "hub", "warning", reason, remedy)
