"""From stored pictures to batches: the images of each step, each changed in its own way.

Nothing here has a state that could be lost: the order of an epoch and the change of a picture are
functions of seed, fold, epoch and image. A training that goes on after a kill, on another number
of processes or workers, sees what it would have seen.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, cast

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from embedcache.files.arrays import Codes
from embedcache.store.embedding_store import EmbeddingStore

Batch = tuple[torch.Tensor, torch.Tensor]  # numbers, and their pictures
UNCHANGED: Final = -1  # in the place of an epoch


class Pictures(Dataset[torch.Tensor]):
    """Stored pictures by epoch and number.

    Parameters
    ----------
    store
        Store of pictures, fitted as the encoder fits them.
    keys
        SHA-256 of each picture's image, by number.
    size
        Height and width of the pictures.
    change
        Function that changes a picture, uint8, shape (channels, height, width), for training; it
        draws from torch's generator.
    seed
        Seed of the changes; with epoch and number it decides each of them.
    """

    def __init__(
        self,
        store: EmbeddingStore,
        keys: Sequence[str],
        size: tuple[int, int],
        change: Callable[[torch.Tensor], torch.Tensor],
        seed: tuple[int, ...],
    ) -> None:
        self._store = store
        self._keys = keys
        self._size = size
        self._change = change
        self._seed = seed

    def __len__(self) -> int:
        return len(self._keys)

    def __getitems__(self, wanted: Sequence[tuple[int, int]]) -> Batch:
        """Return pictures, uint8, shape (n, 1 or 3, height, width): 1 where all are grey.

        Parameters
        ----------
        wanted
            Epoch and number of each picture; as it is stored where the epoch is `UNCHANGED`.
        """
        rows = self._store.read([self._keys[number] for _, number in wanted])
        pictures = torch.from_numpy(rows.reshape(-1, 3, *self._size))
        made = [*map(self._changed, pictures, wanted)]
        if len({len(picture) for picture in made}) > 1:  # grey ones beside some in colour
            made = [picture.expand(3, -1, -1) for picture in made]
        return torch.tensor([number for _, number in wanted]), torch.stack(made)

    def _changed(self, picture: torch.Tensor, place: tuple[int, int]) -> torch.Tensor:
        if torch.equal(picture[0], picture[1]) and torch.equal(picture[0], picture[2]):
            picture = picture[:1]  # a third of the work
        if place[0] == UNCHANGED:
            return picture
        before = torch.get_rng_state()
        seed = np.random.SeedSequence([*self._seed, *place]).generate_state(1, np.uint64)
        torch.default_generator.manual_seed(int(seed[0] >> 1))
        try:
            return self._change(picture)
        finally:
            torch.set_rng_state(before)


def epoch_batches(n_images: int, batch_size: int, seed: tuple[int, ...]) -> list[Codes]:
    """Return the images of each step: all of them, once, shuffled, in batches of nearly one size.

    So none is left out, and no step rests on a few images that were left over.

    Parameters
    ----------
    n_images
        Number of training images.
    batch_size
        Most images of a step, at least 1.
    seed
        Seed of the order: seed of the training, fold and epoch.
    """
    # A generator of its own, so the order does not hang on what else has been drawn.
    order = np.random.default_rng(seed).permutation(n_images)
    return np.array_split(order, -(-n_images // batch_size))


def in_parts(numbers: Codes, n_parts: int) -> list[list[int]]:
    """Return numbers in so many parts of nearly one size, or fewer where there are not enough."""
    return [part.tolist() for part in np.array_split(numbers, max(1, n_parts)) if len(part)]


class Reader:
    """Reads and changes pictures ahead, in processes that live as long as the reader.

    Parameters
    ----------
    pictures
        Pictures to read from.
    workers
        Number of processes that read; 0: this one reads when a batch is asked for.
    device
        Device that batches will go to; for a CUDA GPU they lie in pinned memory.
    """

    def __init__(self, pictures: Pictures, *, workers: int, device: torch.device) -> None:
        self._turn = _Turn()
        self._loader: DataLoader[Batch] = DataLoader(
            cast(Dataset[Batch], pictures),
            batch_sampler=self._turn,
            generator=torch.Generator(),  # or it would draw from the one that dropout draws from
            num_workers=workers,
            persistent_workers=workers > 0,  # else each epoch would start processes again
            collate_fn=_as_it_is,
            worker_init_fn=_stand_apart,
            pin_memory=device.type == "cuda",
        )

    def read(self, parts: Sequence[list[int]], *, epoch: int = UNCHANGED) -> Iterator[Batch]:
        """Yield a batch for each part, in order; one turn has to end before the next."""
        self._turn.parts = [[(epoch, number) for number in part] for part in parts]
        return iter(self._loader)


class _Turn(Sampler[list[tuple[int, int]]]):
    """The batches of the turn under way: a sampler that is filled anew for each turn."""

    def __init__(self) -> None:
        self.parts: list[list[tuple[int, int]]] = []

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def _as_it_is(batch: Any) -> Any:
    return batch


def _stand_apart(worker: int) -> None:
    """Leave the group: the training answers to what is sent to that, and ends its readers itself.

    Python ends them by SIGTERM and waits, so that must be heeded, whatever the training does.
    """
    del worker
    os.setpgrp()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
