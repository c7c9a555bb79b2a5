"""What one fold is asked to do, and what it gives: plain values that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from embedcache.encoders.registry import Identified
from embedcache.files.arrays import Codes, Floats
from embedcache.files.backend import Location
from embedcache.finetune.recipe import Recipe
from embedcache.finetune.regimes import Regime
from embedcache.probes.logistic import LogisticPath

RESULT: Final = "result.pt"
ENCODER: Final = "encoder.safetensors"


@dataclass(frozen=True, slots=True)
class Part:
    """Images by digest, and the number of each one's class, shape (n,)."""

    keys: tuple[str, ...]
    codes: Codes

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class FoldJob:
    """All that decides what one fold gives; can be sent to another process.

    Parameters
    ----------
    fold, seed
        Its number, and the seed of everything that is drawn.
    found
        The encoder and its weights.
    regime, recipe
        What is trained, and how.
    n_classes
        Of the head.
    train, validation
        What moves the weights, and what chooses the epoch: of different patients.
    tests
        What the chosen weights predict: the fold's own patients first, then external cohorts.
    probe
        The probe that the head starts at.
    pixels
        Folder of the stored pictures.
    folder
        Where this fold keeps its state.
    logs
        Where TensorBoard's files go; None: nowhere.
    workers
        Processes that read and change pictures; 0: this one.
    """

    fold: int
    seed: int
    found: Identified
    regime: Regime
    recipe: Recipe
    n_classes: int
    train: Part = field(repr=False)
    validation: Part = field(repr=False)
    tests: tuple[Part, ...] = field(repr=False)
    probe: LogisticPath | None = field(repr=False)
    pixels: Location
    folder: Path
    logs: Path | None
    workers: int


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch gave.

    Parameters
    ----------
    fold, epoch
        Which; epochs count from 1.
    loss
        Of training, the mean over its images.
    macro_f1
        Of the validation part, over the classes that it has.
    validation_loss
        Cross-entropy there.
    lr
        Of the last step, for the encoder's last layer, or for the head where only that is trained.
    images_per_s
        Of training.
    compute_share
        Of the time of training, that not spent waiting for pictures.
    seconds
        All of it, validation too.
    is_best
        Whether its weights are kept so far.
    """

    fold: int
    epoch: int
    loss: float
    macro_f1: float
    validation_loss: float
    lr: float
    images_per_s: float
    compute_share: float
    seconds: float
    is_best: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """How far a fold is: images trained on, of all in all its epochs."""

    fold: int
    epoch: int
    n_done: int
    n_total: int


@dataclass(frozen=True, slots=True)
class FoldResult:
    """What a fold gave.

    Parameters
    ----------
    fold, best_epoch
        Which fold, and the epoch whose weights predicted.
    probability
        One matrix a part of `FoldJob.tests`, shape (n, n_classes), float64.
    epochs
        All of them.
    cost
        seconds, peak_memory_bytes, device, devices; parameters trained and in all, blocks with
        drop path.
    """

    fold: int
    best_epoch: int
    probability: tuple[Floats, ...] = field(repr=False)
    epochs: tuple[Epoch, ...] = field(repr=False)
    cost: dict[str, Any]


def finished(folder: Path) -> FoldResult | None:
    """Return the result of a fold that was trained to its end, or None."""
    if not (folder / RESULT).exists():
        return None
    found = torch.load(folder / RESULT, weights_only=True)
    return FoldResult(
        fold=found["fold"],
        best_epoch=found["best_epoch"],
        probability=tuple(one.numpy() for one in found["probability"]),
        epochs=tuple(Epoch(**one) for one in found["epochs"]),
        cost=found["cost"],
    )
