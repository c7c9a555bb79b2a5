"""The state of trainings under way as one kind of artefact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from embedcache.files.backend import Location, on_disk
from embedcache.files.durable import TEMPORARY
from embedcache.files.kinds import ArtefactKind, Damage, Mended, size_of
from embedcache.files.locks import if_unmarked
from embedcache.workspace import Workspace


class Trainings(ArtefactKind):
    """The states of trainings under way or stopped, one folder a run, until it is published.

    Parameters
    ----------
    workspace
        Workspace of the trainings.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return "trainings under way"

    @property
    def folder(self) -> Location:
        """The folder in which all of them lie."""
        return on_disk(self._workspace.training)

    def items(self) -> Sequence[Location]:
        """Return the folder of each training."""
        return self.folder.folders()

    def check(self, item: Location) -> Iterator[Damage]:
        """Find nothing: a training that goes on looks at its own state."""
        del item
        return iter(())

    def mend(self, item: Location) -> Mended:
        """Remove a training's state: the same command begins it again."""
        item.delete()
        return Mended(f"{item} removed; the same `embedcache finetune` begins again")

    def sweep(self, grace_s: float) -> int:
        """Delete the state of trainings whose run is published, of any age, unless one runs."""
        del grace_s
        temporary = (e.name for e in self.folder.list(hidden=True) if e.name.endswith("/"))
        leftovers = [self.folder / n[:-1] for n in temporary if n.startswith(TEMPORARY)]
        done = [item for item in self.items() if self._workspace.has_run(item.name)]
        if not leftovers and not done:
            return 0
        # A training holds the mark while it works; its folder is then not a leftover.
        with if_unmarked(self._workspace.training) as is_unused:
            if not is_unused:
                return 0
            freed = sum(map(size_of, [*leftovers, *done]))
            for folder in [*leftovers, *done]:
                folder.delete()
            return freed
