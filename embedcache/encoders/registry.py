"""Names to encoders: which there are, what is known of each, and how one is loaded.

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
from embedcache.encoders.models import BUILTIN
from embedcache.encoders.plugins import find_plugin, plugin_names, register_file
from embedcache.encoders.spec import (
    Encoder,
    EncoderSpec,
    TextEncoder,
    WeightsSource,
    fingerprint_of,
    identity,
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
    """An encoder that is known well enough to look for its rows.

    Parameters
    ----------
    spec
        The facts about it.
    weights_file
        Its weights on this machine; None where it has none or random ones.
    weights_digest
        Their SHA-256; None where only loading can tell.
    precision
        Of the computation.
    """

    spec: EncoderSpec
    weights_file: Path | None
    weights_digest: str | None
    precision: Precision

    @property
    def identity(self) -> dict[str, Any] | None:
        """What the fingerprint digests; None where only loading can tell."""
        if self.weights_digest is None:
            return None
        return identity(self.spec, self.weights_digest, self.precision)

    @property
    def fingerprint(self) -> str | None:
        """The fingerprint, or None where only loading can tell."""
        known = self.identity
        return None if known is None else fingerprint_of(known)

    @property
    def presumed_fingerprint(self) -> str:
        """The fingerprint, or what stands for it until loading tells: equal where it will be."""
        source = f"{self.spec.weights.kind} {self.spec.weights.location} {self.spec.weights.seed}"
        return fingerprint_of(identity(self.spec, self.weights_digest or source, self.precision))


def registered() -> list[str]:
    """Return the names of all registered encoders: built in, then plug-ins."""
    return [*BUILTIN, *plugin_names()]


def find_spec(name: str, known: Iterable[Mapping[str, Any]] = ()) -> EncoderSpec:
    """Return the facts about an encoder.

    Parameters
    ----------
    name
        A registered name, `timm:NAME`, `open_clip:ARCH/TAG`, or `random:` before any of them (the
        same network with random weights, as a control).
    known
        Documents of encoders that a store holds; they spare the import of timm or open_clip.

    Raises
    ------
    UnknownEncoderError
        No such encoder; names the nearest.
    """
    if name.replace("_", "-") in BUILTIN:
        return BUILTIN[name.replace("_", "-")]
    plugin = find_plugin(name)
    if plugin is not None:
        return plugin
    kind, _, rest = name.partition(":")
    library = next((one for one in _LIBRARIES if f"{one}:" in name), None)
    if library is not None:
        distribution = _LIBRARIES[library][0]
        for document in known:
            same = document["spec"]["name"] == name
            if same and document["versions"].get(distribution) == _installed(distribution):
                return EncoderSpec.from_document(document["spec"])
    if kind == "random" and rest:
        trained = find_spec(rest, known)
        if trained.weights.kind in {"random", "none"}:
            raise UnknownEncoderError(f"'{rest}' has no trained weights, so no random control")
        return replace(
            trained,
            name=name,
            weights=WeightsSource(kind="random", licence="none needed", commercial=True),
            reference="a control: the same network, never trained",
        )
    if kind == library and rest:
        spec: EncoderSpec = importlib.import_module(_LIBRARIES[kind][1]).describe(rest)
        return spec
    near = difflib.get_close_matches(name, registered(), n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"registered: {', '.join(registered())};"
    raise UnknownEncoderError(
        f"no encoder '{name}'; {hint} others go as timm:NAME or open_clip:ARCH/TAG"
    )


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def library_versions() -> dict[str, str | None]:
    """Return the versions of what an embedding's bits depend on, for the record."""
    return {name: _installed(name) for name in ("embedcache-fm", *_DECISIVE, "pillow", "numpy")}


def identify(
    name: str,
    *,
    digests: DigestCache,
    known: Iterable[Mapping[str, Any]] = (),
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
        See `find_spec`.
    digests
        Remembers the digest of the weights file between runs.
    known
        Documents of encoders that a store holds.
    weights
        A file to use instead of the registered one.
    preprocess
        Another way of fitting pictures than the encoder's own; see `Preprocess`.
    precision, offline
        As `load_encoder` takes them.
    fetch
        Whether weights may be fetched from the hub now; if not, and they are not here, their digest
        stays unknown.

    Raises
    ------
    UnknownEncoderError, EncoderWeightsError
    """
    known = list(known)
    spec = find_spec(name, known)
    if preprocess is not None:
        spec = replace(spec, preprocess=spec.preprocess.refitted(preprocess))
    return identify_spec(
        spec,
        digests=digests,
        known=known,
        weights=weights,
        precision=precision,
        offline=offline,
        fetch=fetch,
    )


def identify_spec(
    spec: EncoderSpec,
    *,
    digests: DigestCache,
    known: Iterable[Mapping[str, Any]] = (),
    weights: Path | None = None,
    precision: Precision = "fp32",
    offline: bool = False,
    fetch: bool = True,
) -> Identified:
    """Find the weights of an encoder whose facts are known; everything else as for `identify`."""
    try:
        file = find_weights(spec, given=weights, offline=offline, fetch=fetch)
    except EncoderWeightsError:
        if fetch or spec.weights.kind != "hub":
            raise
        return Identified(spec, None, None, precision)
    if file is not None:
        digest: str | None = digests.file_digest(file)
        check_registered(spec, file, str(digest))
    elif spec.weights.kind == "random":
        digest = _known_random_digest(spec, known)
    else:
        digest = "none"
    return Identified(spec, file, digest, precision)


def _known_random_digest(spec: EncoderSpec, known: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the digest of weights drawn before by these versions of the libraries."""
    for document in known:
        drawn = EncoderSpec.from_document(document["spec"])
        same = (drawn.architecture, drawn.weights) == (spec.architecture, spec.weights)
        versions = document["versions"]
        if same and all(versions.get(name) == _installed(name) for name in _DECISIVE):
            return str(document["identity"]["weights"])
    return None


def load(found: Identified, *, device: str = "auto") -> Encoder:
    """Load an identified encoder onto a device.

    Parameters
    ----------
    found
        What `identify` returned.
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.

    Raises
    ------
    EncoderWeightsError
        The file is not this encoder's: a tensor is missing, left over or has another shape.
    DeviceError
        This machine has no such device.
    """
    module, _, function = found.spec.loader.partition(":")
    encoder: Encoder = getattr(importlib.import_module(module), function)(found, device)
    if found.fingerprint not in {None, encoder.fingerprint}:
        raise EncoderError(f"'{found.spec.name}' changed its fingerprint while loading")
    return encoder


def load_text(found: Identified, *, device: str = "auto") -> TextEncoder:
    """Load the text half of an identified encoder onto a device.

    Raises
    ------
    EncoderError
        It has none, or its embeddings are not in the space that the text half writes to.
    """
    module = importlib.import_module(found.spec.loader.partition(":")[0])
    if found.spec.weights.kind == "run":
        raise EncoderError(
            f"'{found.spec.name}' was fine-tuned away from its texts; zero-shot "
            "needs the encoder it started from"
        )
    if not hasattr(module, "load_text") or found.spec.output != "projected":
        raise EncoderError(
            f"'{found.spec.name}' has no text half; zero-shot needs fetalclip or an "
            "open_clip:ARCH/TAG"
        )
    texts: TextEncoder = module.load_text(found, device)
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
    """Load an encoder by name: the whole of what is needed to get an embedding.

    Parameters
    ----------
    name
        See `find_spec`.
    weights
        A weights file to use instead of the registered one.
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
    preprocess
        'squash', 'crop', 'pad-square' or 'longest-side' instead of the encoder's own way of fitting
        pictures; part of the fingerprint.
    precision
        'fp32' (TF32 off), 'bf16' or 'fp16'; part of the fingerprint.
    offline
        Never ask the hub.
    encoder_file
        A Python file that defines the encoder; see `plugins.register_file`.

    Raises
    ------
    UnknownEncoderError, EncoderWeightsError, DeviceError

    Examples
    --------
    >>> encoder = embedcache.load_encoder("sononet16", weights="SonoNet16.pth")  # doctest: +SKIP
    >>> rows = encoder.encode(encoder.preprocess(image)[None])  # doctest: +SKIP
    >>> rows = encoder.embed(["a.png", "b.png"])  # doctest: +SKIP
    """
    if encoder_file is not None:
        register_file(Path(encoder_file))
    given = Path(weights) if weights is not None else None
    found = identify(
        name,
        digests=DigestCache(),
        weights=given,
        preprocess=preprocess,
        precision=precision,
        offline=offline,
    )
    return load(found, device=device)
