"""The job of one fold and its result: plain values that travel between processes."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from embedcache.encoders.registry import Identified
from embedcache.files.arrays import Codes, Floats
from embedcache.files.backend import Location
from embedcache.finetune.recipe import Recipe
from embedcache.finetune.regimes import Regime
from embedcache.probes.logistic import LogisticPath


@dataclass(frozen=True, slots=True)
class Part:
    """Images of one part of a fold.

    Parameters
    ----------
    keys
        SHA-256 of each image's bytes.
    codes
        Number of each image's class, shape (n,), from 0.
    """

    keys: tuple[str, ...]
    codes: Codes

    def __len__(self) -> int:
        return len(self.keys)


@dataclass(frozen=True, slots=True)
class FoldJob:
    """All that decides what one fold gives; can be sent to another process.

    Parameters
    ----------
    fold
        Number of the fold, from 0.
    seed
        Seed of everything that is drawn: the order of images, their changes, dropped branches.
    encoder
        The encoder to train, with its weights file.
    regime
        Part of the classifier that is trained.
    recipe
        Every number of the training.
    n_classes
        Number of classes of the head, at least 2.
    train
        Images that move the weights.
    validation
        Images that choose the epoch; of other patients than `train`.
    tests
        Images that the chosen weights predict: the fold's own patients first, then each external
        cohort.
    probe
        Logistic probe that the head starts at; None: the head starts at zero.
    pixels
        Folder of the store of pictures, fitted as the encoder fits them.
    folder
        Folder where this fold writes its state and its result.
    logs
        Folder of TensorBoard's files; None: none are written.
    workers
        Number of processes that read and change pictures; 0: this one does.
    """

    fold: int
    seed: int
    encoder: Identified
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
    """Scores, speed and duration of one epoch.

    Parameters
    ----------
    fold
        Number of the fold, from 0.
    epoch
        Number of the epoch, from 1.
    loss
        Mean loss over the training images, as it was when each was trained on.
    macro_f1
        Macro F1 of the validation images, from 0 to 1, over the classes that they have.
    validation_loss
        Mean cross-entropy of the validation images, in nats.
    lr
        Learning rate of the last step, for the encoder's last layer, or for the head where only
        the head is trained.
    images_per_s
        Images trained on per second, validation not counted.
    compute_share
        Share of the training time not spent waiting for pictures, from 0 to 1.
    seconds
        Duration of training and validation, in seconds.
    is_best
        Whether no epoch before was better; its weights are then saved.
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
    """Progress of one fold, after a step of the optimiser.

    Parameters
    ----------
    fold
        Number of the fold, from 0.
    epoch
        Number of the epoch under way, from 1.
    n_done, n_total
        Number of images trained on so far, and in all epochs together.
    """

    fold: int
    epoch: int
    n_done: int
    n_total: int


@dataclass(frozen=True, slots=True)
class FoldResult:
    """Predictions, epochs and cost of one trained fold.

    Parameters
    ----------
    fold
        Number of the fold, from 0.
    best_epoch
        Number of the epoch whose weights predicted, from 1.
    probability
        Probability of each class, one matrix a part of `FoldJob.tests`, shape (n, n_classes).
    epochs
        What each epoch gave, in order.
    cost
        Facts for the run's record: seconds, peak_memory_bytes, device, devices, parameters,
        parameters_trained, blocks_with_drop_path.
    """

    fold: int
    best_epoch: int
    probability: tuple[Floats, ...] = field(repr=False)
    epochs: tuple[Epoch, ...] = field(repr=False)
    cost: dict[str, Any]
