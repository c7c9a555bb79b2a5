"""The pictures of one fold, numbered through its parts, read ahead and put on the device."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from embedcache.files.arrays import Codes
from embedcache.finetune.augment import augmentation
from embedcache.finetune.batches import Batch, Pictures, Reader, in_parts
from embedcache.finetune.jobs import FoldJob, Part
from embedcache.store.embedding_store import EmbeddingStore


class FoldPictures:
    """All pictures of a fold: those of training come first, then validation, then each test part.

    Parameters
    ----------
    job
        The fold.
    device
        Device that batches go to.
    """

    def __init__(self, job: FoldJob, device: torch.device) -> None:
        self._parts = (job.train, job.validation, *job.tests)
        self._device = device
        self._batch_size = max(1, job.recipe.batch_size // job.recipe.accumulate)
        _, height, width = job.encoder.spec.preprocess.shape
        pictures = Pictures(
            EmbeddingStore(job.pixels),
            [key for part in self._parts for key in part.keys],
            (height, width),
            augmentation(job.recipe),
            (job.seed, job.fold),
        )
        self._reader = Reader(pictures, workers=job.workers, device=device)

    def first_of(self, part: Part) -> int:
        """Return the number of a part's first picture."""
        # By identity: parts hold arrays, which `==` compares element by element.
        before = itertools.takewhile(lambda other: other is not part, self._parts)
        return sum(map(len, before))

    def unchanged(self, numbers: Codes) -> Iterator[Batch]:
        """Yield numbers and pictures as they are stored, on the device, batch by batch.

        Parameters
        ----------
        numbers
            Numbers of pictures, shape (n,).
        """
        n_batches = -(-len(numbers) // self._batch_size)
        for batch, pictures in self._reader.read(in_parts(numbers, n_batches)):
            yield batch, pictures.to(self._device, non_blocking=True)

    def augmented(self, parts: Sequence[list[int]], epoch: int) -> Iterator[Batch]:
        """Yield numbers and pictures as an epoch changes them, in memory that the device can copy.

        Parameters
        ----------
        parts
            Numbers of the pictures of each batch.
        epoch
            Number of the epoch, from 0; it decides the changes.
        """
        return self._reader.read(parts, epoch=epoch)
