"""What `doctor` looks at, and what it says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from embedcache.workspace import Workspace

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Place:
    """What is looked at.

    Parameters
    ----------
    workspace
        Manifest and store, which may be there or not.
    offline
        Whether no network is asked.
    """

    workspace: Workspace
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Observation:
    """One thing that `doctor` has looked at.

    Parameters
    ----------
    topic
        Kind of thing: 'versions', 'extras', 'devices', 'weights', 'network', 'manifest', 'store',
        'disk', 'locks' or 'permissions'.
    subject
        The thing, in one or two words.
    status
        'ok', 'warning' (some things will not work, or work slowly) or 'problem'.
    message
        What was found.
    remedy
        What to do about it; '' where nothing has to be done.
    is_public
        Whether the message holds neither paths nor anything of the user's data.
    """

    topic: str
    subject: str
    status: Status
    message: str
    remedy: str = ""
    is_public: bool = False
