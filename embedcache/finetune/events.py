"""Epochs as TensorBoard shows them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final

from embedcache.files.durable import make_folder
from embedcache.finetune.jobs import Epoch

_SCALARS: Final = ("loss", "macro_f1", "validation_loss", "lr", "images_per_s", "compute_share")


@contextmanager
def epoch_events(folder: Path | None) -> Iterator[Callable[[Epoch], None]]:
    """Yield a function that writes an epoch for TensorBoard, if that is installed.

    Parameters
    ----------
    folder
        Folder of the event files; None: nothing is written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        folder = None
    if folder is None:
        yield lambda _: None
        return
    logging.getLogger("tensorboard").setLevel(logging.ERROR)

    def write(epoch: Epoch) -> None:
        values = asdict(epoch)
        for name in _SCALARS:
            writer.add_scalar(name, values[name], epoch.epoch)
        # At once: whoever watches sees it, and a kill does not lose it.
        writer.flush()

    make_folder(folder)  # before tensorboard makes one that anybody may read
    with SummaryWriter(str(folder)) as writer:
        yield write
