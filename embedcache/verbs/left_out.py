"""What is damaged costs itself and nothing else: verbs over all encoders go on without it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence

from embedcache.errors import StoreCorruptError, StoreReadError
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
