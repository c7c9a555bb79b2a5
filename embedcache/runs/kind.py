"""Runs, as `verify`, `gc` and `status` see them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence

from embedcache.errors import StoreCorruptError
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
        for path, problem in self.runs.damages(item.name):
            yield Damage(path, problem)

    def mend(self, item: Location) -> Mended:
        """Remove a damaged run: the same command makes it again."""
        self.runs.remove(item.name)
        return Mended(f"run {item.name} removed; make it again with the same command")

    def sweep(self, grace_s: float) -> int:
        """Remove what killed processes had written of runs, and locks that nobody holds."""
        freed = 0
        before_ns = time.time_ns() - round(grace_s * 1e9)
        for run_id in list(self.runs.interrupted(before_ns)):
            entries = (self.folder / run_id).list(hidden=True)
            freed += sum(entry.size for entry in entries)
            self.runs.remove(run_id)
        for file, size in list(self.runs.leftovers(before_ns)):
            file.delete()
            freed += size
        self.runs.remove_free_locks(before_ns)
        return freed

    def references(self, item: Location) -> Iterable[Reference]:
        """Return the fold table and the manifest that a run names."""
        try:
            data = self.runs.record(item.name).request.data
        except StoreCorruptError:
            return
        if data.folds_id is not None:
            yield Reference(FOLD_TABLES, data.folds_id)
        if data.manifest:
            yield Reference(SNAPSHOTS, data.manifest)
