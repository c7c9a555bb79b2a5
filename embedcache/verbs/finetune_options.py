"""How `finetune` is asked to train, and whom it tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from embedcache.data.checks import check_at_least
from embedcache.encoders.select import EncoderOptions
from embedcache.extract.report import Progress
from embedcache.finetune.recipe import Recipe
from embedcache.runs.outcome import RunOutcome

if TYPE_CHECKING:
    from embedcache.finetune.jobs import Epoch, Step


@dataclass(frozen=True, slots=True)
class FinetuneOptions:
    """How to fine-tune.

    Parameters
    ----------
    recipe
        Every number of the training; see `finetune.recipe.read_recipe`.
    regime
        'finetune', 'lora', 'head-only', 'lp-ft' or 'partial:N'.
    encoders
        Sources of encoders.
    device
        'auto', 'cpu', 'cuda', 'cuda:N' or 'mps'.
    n_devices
        Number of devices, one process each.
    save
        Whether the trained encoders are kept, to be named as `run:ID`.
    workers
        Number of processes that read and change pictures; None for what suits the machine.
    n_resamples
        Number of resamples of patients behind the interval of the ECE, and of draws of signs
        behind p.
    repeats
        Number of runs of each encoder, each with the next seed: another training, on other folds
        but where these are given.
    """

    recipe: Recipe
    regime: str = "finetune"
    encoders: EncoderOptions = field(default_factory=EncoderOptions)
    device: str = "auto"
    n_devices: int = 1
    save: bool = False
    workers: int | None = None
    n_resamples: int = 10_000
    repeats: int = 1

    def __post_init__(self) -> None:
        check_at_least("repeats", self.repeats, 1)


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions called while a training runs.

    Parameters
    ----------
    on_message
        Called with what a reader of the scores must know.
    on_progress
        Called with how many pictures are decoded.
    on_step
        Called with how far a fold is, after each step.
    on_epoch
        Called with what an epoch gave.
    on_run
        Called with each run as it is done.
    """

    on_message: Callable[[str], None] = field(default=lambda _: None)
    on_progress: Callable[[Progress], None] = field(default=lambda _: None)
    on_step: Callable[[Step], None] = field(default=lambda _: None)
    on_epoch: Callable[[Epoch], None] = field(default=lambda _: None)
    on_run: Callable[[RunOutcome], None] = field(default=lambda _: None)
