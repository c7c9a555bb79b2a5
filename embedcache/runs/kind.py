"""Runs, as `verify`, `gc` and `status` see them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from embedcache.errors import StoreCorruptError, StoreReadError
from embedcache.files.backend import Location
from embedcache.files.kinds import FOLD_TABLES, SNAPSHOTS, ArtefactKind, Damage, Mended, Reference
from embedcache.runs.files import RunFiles


class RunsKind(ArtefactKind):
    """Every run of a workspace; see `ArtefactKind`."""

    def __init__(self, runs: RunFiles) -> None:
        self.runs = runs

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return "runs"

    @property
    def folder(self) -> Location:
        """The folder in which all of them lie."""
        return self.runs.folder

    def items(self) -> Sequence[Location]:
        """Return the folder of each run, of one that lost its record too."""
        return [self.folder / run_id for run_id in self.runs.folders()]

    def check(self, item: Location) -> Iterator[Damage]:
        """Compare the record and the tables of a run with their checksums."""
        if self.runs.is_copy(item.name):
            return
        for path, problem in self.runs.damages(item.name):
            yield Damage(path, problem)

    def mend(self, item: Location) -> Mended:
        """Remove a damaged run: the same command makes it again."""
        # Another process may have removed it and made it again since the damage was seen.
        if not any(RunFiles(self.runs.workspace).damages(item.name)):
            return Mended(f"run {item.name} is whole by now")
        self.runs.remove(item.name)
        return Mended(f"run {item.name} removed; make it again with the same command")

    def sweep(self, grace_s: float) -> int:
        """Remove what killed processes had written of runs, and locks that nobody holds."""
        return self.runs.sweep(grace_s)

    def strangers(self) -> Iterator[str]:
        """Yield a line about each thing that is no run: also copies of runs."""
        for item in self.items():
            if self.runs.is_copy(item.name):
                yield f"{item} holds the record of another run, and is not read: left alone"
        yield from super().strangers()

    def is_under_way(self, name: str) -> bool:
        """Tell whether a run is being written in a folder, or was when its writer was killed."""
        return self.runs.is_marked(name) or super().is_under_way(name)

    def references(self, item: Location) -> Iterable[Reference]:
        """Return the fold table and the manifest that a run names."""
        try:
            data = self.runs.record(item.name).request.data
        except (StoreCorruptError, StoreReadError):
            return
        if data.folds_id is not None:
            yield Reference(FOLD_TABLES, data.folds_id)
        if data.manifest:
            yield Reference(SNAPSHOTS, data.manifest)
