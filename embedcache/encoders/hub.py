"""The Hugging Face hub: what is in its cache, what can be fetched, and why something cannot.

The hub's client may have been imported before, by a notebook, so whether it may ask the network is
said to it where it looks each time, not by a variable that it has read at its import.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

_log = logging.getLogger(__name__)
REACH_S: Final = 5.0  # that a hub has to answer before anything is fetched from it
_DISK: Final = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM}
_SWITCH: Final = "HF_HUB_OFFLINE"


class NotFetched(Exception):  # noqa: N818 - a reason, which the caller puts into its own error
    """A file of the hub is not here and cannot be fetched; the message is the reason."""


@contextlib.contextmanager
def hub_off(*, off: bool = True) -> Iterator[None]:
    """Keep what runs inside a block from asking the hub, whenever its client was imported.

    Parameters
    ----------
    off
        Whether it is kept from it; else the block runs as it is.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, os.environ.get(_SWITCH)
    if off:
        constants.HF_HUB_OFFLINE, os.environ[_SWITCH] = True, "1"
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before[0]
        if before[1] is None:
            os.environ.pop(_SWITCH, None)
        else:
            os.environ[_SWITCH] = before[1]


def hub_file(repository: str, names: Sequence[str], *, offline: bool) -> Path:
    """Return a file of a repository, from the cache or the hub.

    Parameters
    ----------
    repository
        Text 'ORG/NAME', or 'ORG/NAME@REVISION'.
    names
        Names that the file may have there, the likeliest first.
    offline
        Whether the hub is never asked.

    Raises
    ------
    NotFetched
        It is not in the cache and could not be fetched.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    repo_id, _, revision = repository.partition("@")
    try:
        for name in names:
            cached = try_to_load_from_cache(repo_id, name, revision=revision or None)
            if isinstance(cached, str):  # else None, or a mark that the hub has no such file
                return Path(cached)
        if offline:
            raise NotFetched("it is not in the Hugging Face cache, and --offline forbids to fetch")
        if reason := why_unreachable():
            raise NotFetched(reason)
        # The hub's client reports each of its retries; one line at the end is enough.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        _log.info("fetching %s from %s/%s", names[0], constants.ENDPOINT, repo_id)
        for name in names:
            try:
                return Path(hf_hub_download(repo_id, name, revision=revision or None))
            except LocalEntryNotFoundError:  # no answer; an `EntryNotFoundError` too
                raise
            except EntryNotFoundError:
                continue
    except NotFetched:
        raise
    except Exception as error:  # whatever the client, and the HTTP library below it, raises
        raise NotFetched(_reason(error)) from error
    raise NotFetched(f"the hub has none of {', '.join(names)} there")


def why_unreachable(within_s: float = REACH_S) -> str:
    """Return why the hub cannot be asked now; '' where it answers, whatever it answers.

    Parameters
    ----------
    within_s
        Seconds that it has to answer.
    """
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return f"{_SWITCH} is set; unset it to fetch"
    reasons = [f"{constants.ENDPOINT} does not answer within {within_s:g} s"]

    def ask() -> None:
        try:
            get_session().head(constants.ENDPOINT, timeout=within_s)
        except Exception as error:  # whatever the HTTP library in use raises
            reasons.append(_reason(error))
        else:
            reasons.append("")

    # In a thread: no time-out of an HTTP library ends the search for a name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(within_s)
    return reasons[-1]


def _reason(error: BaseException) -> str:
    """Return why the hub's client failed, in a few words."""
    from huggingface_hub import constants, errors

    reasons: tuple[tuple[type[Exception], str], ...] = (  # special classes before their parents
        (errors.GatedRepoError, "its licence has to be accepted there, then run `hf auth login`"),
        (errors.RepositoryNotFoundError, "no such repository, or a private one (`hf auth login`)"),
        (errors.RevisionNotFoundError, "the hub has no such revision of it"),
        (errors.HFValidationError, "that is no name of a repository; expected ORG/NAME"),
    )
    for kind, reason in reasons:
        if isinstance(error, kind):
            return reason
    causes = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        causes.append(cause)
    root = causes[-1]
    if isinstance(root, OSError) and root.errno in _DISK:
        cache = constants.HF_HUB_CACHE
        return f"{cache}: {root.strerror}; mend that, or set HF_HUB_CACHE to another folder"
    for cause in causes:
        status = getattr(getattr(cause, "response", None), "status_code", None)
        if status is not None:
            return f"{constants.ENDPOINT} answered with status {status}"
    text = " ".join(str(root).split()) or type(root).__name__
    return f"{constants.ENDPOINT} cannot be asked ({text[:160]})"
