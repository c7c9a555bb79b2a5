"""The encoders that names mean, with the weights they use: identified, not yet loaded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from embedcache.encoders import registry
from embedcache.encoders.choices import Precision, PrecisionChoice
from embedcache.encoders.kept import PREFIX, kept_encoders
from embedcache.encoders.plugins import register_file
from embedcache.encoders.registry import Identified
from embedcache.encoders.weights import find_weights
from embedcache.errors import EncoderError, EncoderWeightsError, RunError
from embedcache.files.digests import DigestCache
from embedcache.workspace import Workspace

ALL: Final = "all"


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """Source of encoders and precision of their computation; all of it decides a value.

    Parameters
    ----------
    weights
        Weights file to use instead of the registered one, for one model only.
    preprocess
        Another way of fitting pictures than the encoders' own: 'squash', 'crop', 'pad-square' or
        'longest-side'; None for their own.
    precision
        Precision of the computation; 'auto' is 'fp32' with TF32 off, on every device.
    encoder_file
        Python file that defines encoders.
    offline
        Whether the hub is never asked.
    """

    weights: Path | None = None
    preprocess: str | None = None
    precision: PrecisionChoice = "auto"
    encoder_file: Path | None = None
    offline: bool = False


def select_models(
    models: Sequence[str], documents: Iterable[dict[str, Any]], *, offline: bool
) -> list[str]:
    """Return the models meant: 'all' is every encoder whose weights are here or that is stored."""
    if ALL not in models:
        return list(dict.fromkeys(models))
    present = []
    for name in registry.registered():
        if ":" in name:  # another output of the same network
            continue
        try:
            find_weights(registry.find_spec(name), offline=offline, fetch=False)
        except EncoderError:  # no weights, or a plug-in that is broken
            continue
        present.append(name)
    stored = [str(document["name"]) for document in documents]
    return list(dict.fromkeys([*present, *stored, *(name for name in models if name != ALL)]))


def identify_models(
    workspace: Workspace,
    models: Sequence[str],
    options: EncoderOptions,
    digests: DigestCache,
    documents: Collection[dict[str, Any]],
    *,
    fetch: bool = True,
) -> list[Identified]:
    """Find each model's weights and fingerprint; two names of one fingerprint count once.

    Parameters
    ----------
    workspace
        Workspace of the fine-tuned weights.
    models
        Names of encoders; 'all' for every one whose weights are here.
    options
        Source of encoders and precision of their computation.
    digests
        Cache of the digests of weights files.
    documents
        Content of each stored encoder's `encoder.json`.
    fetch
        Whether weights may be fetched from the hub now.

    Raises
    ------
    RunError
        No model, or `weights` with several models.
    UnknownEncoderError, EncoderWeightsError
        No such encoder, or weights that are missing or another model's.
    """
    if options.encoder_file is not None:
        register_file(options.encoder_file)
    names = select_models(models, documents, offline=options.offline)
    if not names:
        raise RunError("no model named; pass -m NAME, see `embedcache encoders`")
    if options.weights is not None and len(names) != 1:
        raise RunError(f"--weights is for one model, {len(names)} were named: {', '.join(names)}")
    identified = [
        encoder
        for name in names
        for encoder in _identify_model(workspace, name, options, digests, documents, fetch=fetch)
    ]
    # Backwards, so that of two names for one encoder the first is used.
    unique = {encoder.presumed_fingerprint: encoder for encoder in reversed(identified)}
    return list(unique.values())[::-1]


def _identify_model(
    workspace: Workspace,
    name: str,
    options: EncoderOptions,
    digests: DigestCache,
    documents: Collection[dict[str, Any]],
    *,
    fetch: bool,
) -> list[Identified]:
    """Return the encoder of a name, or those of all folds that `run:ID` means."""
    precision: Precision = "fp32" if options.precision == "auto" else options.precision
    if not name.startswith(PREFIX):
        return [
            registry.identify_by_name(
                name,
                digests=digests,
                documents=documents,
                weights=options.weights,
                preprocess=options.preprocess,
                precision=precision,
                offline=options.offline,
                fetch=fetch,
            )
        ]
    trained = kept_encoders(workspace, name)
    own_fit = trained[0][0].preprocess.fit
    if options.weights is not None or options.preprocess not in {None, own_fit}:
        raise RunError(f"'{name}' has its own weights and preprocessing; leave out the options")
    return [
        registry.identify_by_spec(
            spec,
            digests=digests,
            documents=documents,
            weights=file,
            precision=precision,
            offline=options.offline,
            fetch=fetch,
        )
        for spec, file in trained
    ]


def identify_stored(
    workspace: Workspace,
    document: dict[str, Any],
    digests: DigestCache,
    documents: Collection[dict[str, Any]],
    options: EncoderOptions,
) -> Identified:
    """Find the encoder that stored rows came from, with the weights that made them.

    Parameters
    ----------
    workspace
        Workspace of the fine-tuned weights.
    document
        Content of the store's `encoder.json`.
    digests
        Cache of the digests of weights files.
    documents
        Content of each stored encoder's `encoder.json`.
    options
        Weights file and hub; preprocessing and precision are those of the rows.

    Raises
    ------
    EncoderWeightsError
        The weights here are other ones.
    """
    made_with = replace(
        options,
        preprocess=document["identity"]["preprocess"]["fit"],
        precision=document["identity"]["precision"],
    )
    name, fingerprint = str(document["name"]), str(document["fingerprint"])
    [encoder] = _identify_model(workspace, name, made_with, digests, documents, fetch=True)
    if encoder.fingerprint not in {None, fingerprint}:
        raise EncoderWeightsError(
            f"the weights here are not those of {name}@{fingerprint[:12]}; pass the original file "
            "as --weights"
        )
    return encoder
