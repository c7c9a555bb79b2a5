"""Names to encoders: the registered ones, the facts about each, and how one is loaded.

From least to most: a name, its `EncoderSpec` (`find_spec`), an `Identified` encoder with its
weights file and fingerprint (`identify_by_name`, `identify_by_spec`), a loaded `Encoder` (`load`).

Nothing here imports torch until an encoder is loaded: `--help`, `status` and an extraction that
finds everything cached never pay for it.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from embedcache.encoders.choices import Precision
from embedcache.encoders.hub import hub_off
from embedcache.encoders.model_folders import LOCAL
from embedcache.encoders.models import BUILTIN
from embedcache.encoders.plugins import find_plugin, foreign_code, plugin_names, register_file
from embedcache.encoders.spec import (
    Encoder,
    EncoderSpec,
    TextEncoder,
    WeightsSource,
    fingerprint_of,
    identity_of,
)
from embedcache.encoders.weights import check_registered, find_weights
from embedcache.errors import EncoderError, EncoderWeightsError, UnknownEncoderError
from embedcache.files.digests import DigestCache

# Libraries of networks: what a name starts with, the distribution, and who describes its models.
_LIBRARIES: Final = {
    "timm": ("timm", "embedcache.encoders.timm_encoders"),
    "open_clip": ("open_clip_torch", "embedcache.encoders.open_clip_encoders"),
}
_DECISIVE: Final = ("torch", "timm", "open_clip_torch")


@dataclass(frozen=True, slots=True)
class Identified:
    """An encoder with its weights file, not loaded: enough to look for its rows in a store.

    Parameters
    ----------
    spec
        Facts about the encoder.
    weights_file
        File of the weights on this machine; None where there are none or random ones.
    weights_digest
        SHA-256 of the weights; None where only loading can tell, 'none' where there are none.
    precision
        Precision of the computation.
    """

    spec: EncoderSpec
    weights_file: Path | None
    weights_digest: str | None
    precision: Precision

    @property
    def identity(self) -> dict[str, Any] | None:
        """Everything that decides a value; None where only loading can tell."""
        if self.weights_digest is None:
            return None
        return identity_of(self.spec, self.weights_digest, self.precision)

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint, or None where only loading can tell."""
        identity = self.identity
        return None if identity is None else fingerprint_of(identity)

    @property
    def presumed_fingerprint(self) -> str:
        """The fingerprint, or what stands for it until loading tells: equal where it will be."""
        source = f"{self.spec.weights.kind} {self.spec.weights.location} {self.spec.weights.seed}"
        return fingerprint_of(identity_of(self.spec, self.weights_digest or source, self.precision))


def registered() -> list[str]:
    """Return the names of all registered encoders: built in, then plug-ins."""
    return [*BUILTIN, *plugin_names()]


def find_spec(
    name: str, documents: Iterable[Mapping[str, Any]] = (), *, offline: bool = False
) -> EncoderSpec:
    """Return the facts about an encoder.

    Parameters
    ----------
    name
        A registered name, `timm:NAME`, `open_clip:ARCH/TAG`, one of these libraries' own names of
        saved models (`timm:local-dir:PATH`, `open_clip:hf-hub:ORG/NAME`), or `random:` before any
        of them (the same network with random weights, as a control).
    documents
        Documents of encoders that a store holds; they spare the import of timm or open_clip.
    offline
        Whether the hub is never asked.

    Raises
    ------
    UnknownEncoderError
        No such encoder; names the nearest.
    """
    # The command line, too, takes an underscore for a hyphen.
    if name.replace("_", "-") in BUILTIN:
        return BUILTIN[name.replace("_", "-")]
    present = find_plugin(name) or _stored_spec(name, documents)
    if present is not None:
        return present
    kind, _, rest = name.partition(":")
    if kind == "random" and rest:
        trained = find_spec(rest, documents, offline=offline)
        if trained.weights.kind in {"random", "none"}:
            raise UnknownEncoderError(f"'{rest}' has no trained weights, so no random control")
        return replace(
            trained,
            name=name,
            weights=WeightsSource(kind="random", licence="none needed", commercial=True),
            reference="a control: the same network, never trained",
        )
    if kind in _LIBRARIES and rest:
        describe = importlib.import_module(_LIBRARIES[kind][1]).describe
        with foreign_code(f"'{name}' cannot be described"), hub_off(off=offline):
            spec: EncoderSpec = describe(rest, offline=offline)
        return spec
    near = difflib.get_close_matches(name, registered(), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"registered: {', '.join(registered())};"
    raise UnknownEncoderError(
        f"no encoder '{name}'; {hint} others go as timm:NAME or open_clip:ARCH/TAG"
    )


def _stored_spec(name: str, documents: Iterable[Mapping[str, Any]]) -> EncoderSpec | None:
    """Return the facts that a store holds of a library's model; None where it must be asked."""
    library = next((prefix for prefix in _LIBRARIES if f"{prefix}:" in name), None)
    if library is None or f":{LOCAL}:" in name:  # a folder may hold another model by now
        return None
    distribution = _LIBRARIES[library][0]
    # Another version of the library may describe the model otherwise: then it is asked again.
    for document in documents:
        same = document["spec"]["name"] == name
        if same and document["versions"].get(distribution) == _installed(distribution):
            return EncoderSpec.from_document(document["spec"])
    return None


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def library_versions() -> dict[str, str | None]:
    """Return the versions of what an embedding's bits depend on, for the record."""
    return {name: _installed(name) for name in ("embedcache-fm", *_DECISIVE, "pillow", "numpy")}


def identify_by_name(
    name: str,
    *,
    digests: DigestCache,
    documents: Iterable[Mapping[str, Any]] = (),
    weights: Path | None = None,
    preprocess: str | None = None,
    precision: Precision = "fp32",
    offline: bool = False,
    fetch: bool = True,
) -> Identified:
    """Find an encoder's weights and, without loading them, its fingerprint where that can be had.

    Parameters
    ----------
    name
        Name of an encoder, as for `find_spec`.
    digests
        Cache of the digests of weights files.
    documents
        Documents of encoders that a store holds; they tell the digests of random weights.
    weights
        Weights file to use instead of the registered one.
    preprocess
        'squash', 'crop', 'pad-square' or 'longest-side'; None for the encoder's own way of fitting.
    precision
        Precision of the computation.
    offline
        Whether the hub is never asked.
    fetch
        Whether weights may be fetched from the hub now; else their digest may stay unknown.

    Raises
    ------
    UnknownEncoderError, EncoderWeightsError
        No such encoder, or weights that are missing or not the registered ones.
    """
    documents = list(documents)
    spec = find_spec(name, documents, offline=offline)
    if preprocess is not None:
        spec = replace(spec, preprocess=spec.preprocess.refitted(preprocess))
    return identify_by_spec(
        spec,
        digests=digests,
        documents=documents,
        weights=weights,
        precision=precision,
        offline=offline,
        fetch=fetch,
    )


def identify_by_spec(
    spec: EncoderSpec,
    *,
    digests: DigestCache,
    documents: Iterable[Mapping[str, Any]] = (),
    weights: Path | None = None,
    precision: Precision = "fp32",
    offline: bool = False,
    fetch: bool = True,
) -> Identified:
    """Find the weights of an encoder of these facts, and its fingerprint where that can be had.

    Parameters
    ----------
    spec
        Facts about the encoder.
    digests, documents, weights, precision, offline, fetch
        See `identify_by_name`.

    Raises
    ------
    EncoderWeightsError
        The weights are not on this machine, or not the registered ones.
    """
    try:
        file = find_weights(spec, given=weights, offline=offline, fetch=fetch)
    except EncoderWeightsError:
        if fetch or spec.weights.kind != "hub":
            raise
        # A plan fetches nothing: the digest stays open until the file is here.
        return Identified(spec, None, None, precision)
    if file is not None:
        digest: str | None = digests.file_digest(file)
        check_registered(spec, file, str(digest))
    elif spec.weights.kind == "random":
        digest = _drawn_digest(spec, documents)
    else:
        digest = "none"
    return Identified(spec, file, digest, precision)


def _drawn_digest(spec: EncoderSpec, documents: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the digest of weights drawn before by these versions of the libraries."""
    # Torch may draw other numbers in another version, so the libraries must be the same too.
    for document in documents:
        drawn = EncoderSpec.from_document(document["spec"])
        same = (drawn.architecture, drawn.weights) == (spec.architecture, spec.weights)
        versions = document["versions"]
        if same and all(versions.get(name) == _installed(name) for name in _DECISIVE):
            return str(document["identity"]["weights"])
    return None


def load(identified: Identified, *, device: str = "auto") -> Encoder:
    """Load an identified encoder onto a device.

    Parameters
    ----------
    identified
        Encoder to load.
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.

    Raises
    ------
    EncoderWeightsError
        The file is not this encoder's: a tensor is missing, left over or has another shape.
    DeviceError
        This machine has no such device.
    """
    module, _, function = identified.spec.loader.partition(":")
    name = identified.spec.name
    with foreign_code(f"encoder '{name}' cannot be loaded"):
        encoder = getattr(importlib.import_module(module), function)(identified, device)
    if not isinstance(encoder, Encoder):
        raise EncoderError(f"the loader of '{name}' returned {type(encoder).__name__}, no Encoder")
    if identified.fingerprint not in {None, encoder.fingerprint}:
        raise EncoderError(f"'{name}' changed its fingerprint while loading")
    return encoder


def load_text(
    identified: Identified, *, device: str = "auto", offline: bool = False
) -> TextEncoder:
    """Load the text half of an identified encoder onto a device.

    Parameters
    ----------
    identified
        Encoder whose text half is loaded.
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
    offline
        Whether the hub is never asked, for a tokenizer.

    Raises
    ------
    EncoderError
        The encoder has no text half, or its embeddings are not in the space of the texts.
    """
    module = importlib.import_module(identified.spec.loader.partition(":")[0])
    if identified.spec.weights.kind == "run":
        raise EncoderError(
            f"'{identified.spec.name}' was fine-tuned away from its texts; zero-shot "
            "needs the encoder it started from"
        )
    if not hasattr(module, "load_text") or identified.spec.output != "projected":
        raise EncoderError(
            f"'{identified.spec.name}' has no text half; zero-shot needs fetalclip or an "
            "open_clip:ARCH/TAG"
        )
    with foreign_code(f"the text half of '{identified.spec.name}'"), hub_off(off=offline):
        texts: TextEncoder = module.load_text(identified, device)
    return texts


def load_encoder(
    name: str,
    *,
    weights: Path | str | None = None,
    device: str = "auto",
    preprocess: str | None = None,
    precision: Precision = "fp32",
    offline: bool = False,
    encoder_file: Path | str | None = None,
) -> Encoder:
    """Load an encoder by name: all that it takes to get an embedding.

    Parameters
    ----------
    name
        Name of an encoder, as for `find_spec`.
    weights
        Weights file to use instead of the registered one.
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
    preprocess
        'squash', 'crop', 'pad-square' or 'longest-side'; None for the encoder's own way of fitting.
    precision
        'fp32' (TF32 off), 'bf16' or 'fp16'; part of the fingerprint, as `preprocess` is.
    offline
        Whether the hub is never asked.
    encoder_file
        Python file that defines the encoder.

    Raises
    ------
    UnknownEncoderError, EncoderWeightsError, DeviceError
        The encoder, its weights or the device is not there.

    Examples
    --------
    >>> encoder = embedcache.load_encoder("sononet16", weights="SonoNet16.pth")  # doctest: +SKIP
    >>> rows = encoder.embed(["a.png", "b.png"])  # doctest: +SKIP
    """
    if encoder_file is not None:
        register_file(Path(encoder_file))
    identified = identify_by_name(
        name,
        digests=DigestCache(),
        weights=None if weights is None else Path(weights),
        preprocess=preprocess,
        precision=precision,
        offline=offline,
    )
    return load(identified, device=device)
