"""What `verify`, `gc` and `status` need to know of each kind of artefact in a store.

Each kind stands beside the code that writes it, and the verbs go through one list of them. A kind
lists what it knows by its own rules, so a file that no kind knows is listed by nobody and deleted
by nobody.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from secrets import token_hex
from typing import Final, Protocol

from embedcache.errors import StoreReadError
from embedcache.files.backend import Location
from embedcache.files.durable import TEMPORARY, is_abandoned

# Longer than any reader holds on to the records it listed, and any writer of another machine on to
# what it is writing.
GRACE_S: Final = 600.0

SNAPSHOTS: Final = "snapshots"
FOLD_TABLES: Final = "fold tables"


@dataclass(frozen=True, slots=True)
class Damage:
    """One thing that is wrong with an artefact.

    Parameters
    ----------
    path
        The file that is damaged or missing.
    problem
        Words that follow the path in a message: 'is missing', 'does not match its checksum'.
    keys
        SHA-256 of each image whose row is lost with the file.
    """

    path: Location
    problem: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reference:
    """An artefact of another kind, by the name under which it is looked up.

    Parameters
    ----------
    kind
        `ArtefactKind.name` of the kind, `SNAPSHOTS` or `FOLD_TABLES`.
    artefact
        Content digest of a snapshot, or id of a fold table.
    """

    kind: str
    artefact: str


@dataclass(frozen=True, slots=True)
class Mended:
    """What was done about a damaged artefact.

    Parameters
    ----------
    message
        One line for the user: what was done, and what is left to do.
    lost_keys
        SHA-256 of each image that has to be encoded again.
    """

    message: str
    lost_keys: frozenset[str] = frozenset()


class ArtefactKind(Protocol):
    """All artefacts of one kind in a workspace.

    Attributes
    ----------
    name
        Plural name of the kind, as in a report: 'fold tables'.
    folder
        The folder in which all of them lie.
    """

    @property
    def name(self) -> str:
        """Plural name of the kind."""

    @property
    def folder(self) -> Location:
        """The folder in which all of them lie."""

    def items(self) -> Sequence[Location]:
        """Return the file or the folder of each artefact, by name."""

    def check(self, item: Location) -> Iterable[Damage]:
        """Compare an artefact with its checksums; changes nothing."""

    def mend(self, item: Location) -> Mended:
        """Make a damaged artefact whole, or remove it where the same command makes it again.

        Raises
        ------
        StoreCorruptError
            Nothing can be done without the user.
        StoreWriteError
            The storage refused.
        """

    def sweep(self, grace_s: float) -> int:
        """Delete what nothing needs any more and return how many bytes that freed.

        Parameters
        ----------
        grace_s
            Age in seconds that a file must have reached: a reader may still hold a younger one.
        """

    def strangers(self) -> Iterable[str]:
        """Yield a line about each thing in the folder that is no artefact: nobody touches it."""
        names = {item.name for item in self.items()}
        for entry in self.folder.list():
            name = entry.name.removesuffix("/")
            if name not in names and not self.is_under_way(name):
                yield f"{self.folder / name} is not ours: left alone"

    def is_under_way(self, name: str) -> bool:
        """Tell whether something in the folder, no artefact, may become one or has just been one.

        Parameters
        ----------
        name
            Name of the file or the folder.
        """
        return not (self.folder / name).exists() and not (self.folder / name).list()

    def size(self) -> int:
        """Return how many bytes the artefacts take."""
        return sum(size_of(item) for item in self.items())

    def references(self, item: Location) -> Iterable[Reference]:
        """Return the artefacts of other kinds that an artefact needs; none where it is damaged."""
        del item
        return ()

    def holds(self, artefact: str) -> bool:
        """Tell whether the artefact of a `Reference` is there."""
        return any(item.name == artefact for item in self.items())


def check_references(kinds: Sequence[ArtefactKind]) -> Iterator[Damage]:
    """Find what an artefact of any kind needs but that is gone."""
    referrers: dict[Reference, str] = {}
    for kind in kinds:
        for item in kind.items():
            # One that may not be read is a finding of its own.
            with contextlib.suppress(StoreReadError):
                for reference in kind.references(item):
                    referrers.setdefault(reference, item.name)
    by_name = {kind.name: kind for kind in kinds}
    for reference, referrer in referrers.items():
        kind = by_name[reference.kind]
        if not kind.holds(reference.artefact):
            path = kind.folder / reference.artefact
            yield Damage(path, f"is missing, but {referrer} names it")


def size_of(item: Location) -> int:
    """Return the size in bytes of a file, or of all files of a folder."""
    files = item.list(deep=True, hidden=True)
    if files:
        return sum(entry.size for entry in files)
    return sum(e.size for e in item.parent.list(hidden=True) if e.name == item.name)


class Ages:
    """How long ago files of one folder were changed, by the clock of their own storage.

    Parameters
    ----------
    folder
        Folder that is there, and can be written to.
    """

    def __init__(self, folder: Location) -> None:
        self._folder = folder

    @cached_property
    def now_ns(self) -> int:
        """Time now by the clock that stamps the folder's files, in nanoseconds since 1970."""
        while True:
            mark = self._folder / f"{TEMPORARY}clock-{token_hex(8)}"
            mark.put(b"")
            try:
                entries = self._folder.list(hidden=True)
            finally:
                mark.delete()
            # None where another sweep without a grace time has removed the mark.
            for entry in entries:
                if entry.name == mark.name:
                    return entry.modified_ns

    def is_over(self, modified_ns: int, grace_s: float) -> bool:
        """Tell whether what was changed at a time is at least `grace_s` seconds old."""
        return self.now_ns - modified_ns >= grace_s * 1e9

    def is_left(self, file: Location, modified_ns: int, grace_s: float) -> bool:
        """Tell whether a file is the leftover of a killed writer, old enough to be deleted.

        Where nobody can tell whether its writer lives, it stays for the usual grace time at least.

        Parameters
        ----------
        file
            Temporary or mark that a living writer holds; see `durable.held`.
        modified_ns
            Time of its last change, in nanoseconds since 1970.
        grace_s
            Age in seconds that it must have reached.
        """
        if not self.is_over(modified_ns, grace_s):
            return False
        abandoned = is_abandoned(file.local_path)
        return self.is_over(modified_ns, GRACE_S) if abandoned is None else abandoned


def sweep_temporaries(folder: Location, grace_s: float, *, spared: Collection[str] = ()) -> int:
    """Delete what killed writers left in a folder, and return how many bytes that freed.

    A temporary goes only after the grace time, and never while its writer lives.

    Parameters
    ----------
    folder
        Folder that holds the temporaries.
    grace_s
        Age in seconds that a temporary must have reached.
    spared
        Names of entries that stay, whatever their age.
    """
    freed, ages = 0, Ages(folder)
    for entry in folder.list(hidden=True):
        if entry.name.startswith(TEMPORARY) and entry.name not in spared:
            leftover = folder / entry.name.removesuffix("/")
            if entry.name.endswith("/"):  # a folder on its way out
                is_left = ages.is_over(entry.modified_ns, grace_s)
            else:
                is_left = ages.is_left(leftover, entry.modified_ns, grace_s)
            if is_left:
                freed += size_of(leftover)
                leftover.delete()
    return freed
