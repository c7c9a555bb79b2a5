"""What is damaged costs itself and nothing else: verbs over all encoders go on without it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from embedcache.errors import RunError, StoreCorruptError, StoreReadError
from embedcache.files.backend import Location
from embedcache.verbs.session import ALL

_log = logging.getLogger(__name__)


@contextlib.contextmanager
def leaving_out(name: str, models: Sequence[str]) -> Iterator[None]:
    """Log that what is stored of an encoder is damaged, and go on, unless it was asked for by name.

    Parameters
    ----------
    name
        Name of the encoder that the block works on.
    models
        Names of encoders that were asked for; 'all' for every one.
    """
    try:
        yield
    except (StoreCorruptError, StoreReadError) as error:
        if ALL not in models:
            raise
        _log.warning("encoder '%s' is left out: %s", name, error)


def check_any_run(runs: Sequence[object], names: Sequence[str], store: Location) -> None:
    """Refuse to report on no run at all.

    Parameters
    ----------
    runs
        Runs that were made.
    names
        Names of the encoders that they were to be made of.
    store
        The store of the encoders.

    Raises
    ------
    RunError
        The store holds no encoder.
    StoreCorruptError
        What it holds of every one is damaged.
    """
    if not names:
        raise RunError(f"{store} holds no embeddings; run `embedcache extract -m NAME`")
    if not runs:
        raise StoreCorruptError(
            f"{store}: what is stored of all {len(names)} encoders is damaged; run `embedcache "
            "verify --repair`"
        )
