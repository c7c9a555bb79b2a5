"""The catalog, as `verify`, `gc` and `status` see it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from embedcache.catalog.index import check_catalog
from embedcache.files.backend import Location, on_disk
from embedcache.files.kinds import ArtefactKind, Damage, Mended, sweep_temporaries
from embedcache.workspace import Workspace

_BUILD_S: Final = 60.0  # longer than the last steps of a catalog's build, in which it has its size


class CatalogFile(ArtefactKind):
    """The DuckDB file of a workspace: derived, so that it can be deleted at any time.

    Parameters
    ----------
    workspace
        Workspace of the catalog.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    @property
    def name(self) -> str:
        """Plural name of the kind."""
        return "catalog"

    @property
    def folder(self) -> Location:
        """The folder in which the file lies."""
        return on_disk(self._workspace.local)

    def items(self) -> Sequence[Location]:
        """Return the file, if there is one."""
        path = self._workspace.catalog
        return [self.folder / path.name] if path.exists() else []

    def check(self, item: Location) -> Iterator[Damage]:
        """Compare each table with the digest that was written beside it."""
        differing = check_catalog(self._workspace.catalog)
        if differing:
            yield Damage(item, f"is damaged in {', '.join(differing)}")

    def mend(self, item: Location) -> Mended:
        """Remove the file; the end of any writing command writes it anew."""
        item.delete()
        return Mended(f"{item} removed; it is written anew from the files")

    def sweep(self, grace_s: float) -> int:
        """Delete leftovers of killed writers."""
        # Nobody can see whether DuckDB is still writing a file.
        entries = self.folder.list(hidden=True)
        built = {entry.name for entry in entries if ".duckdb" in entry.name}
        unseen = {entry.name for entry in entries} - built
        freed = sweep_temporaries(self.folder, grace_s, spared=built)
        return freed + sweep_temporaries(self.folder, max(grace_s, _BUILD_S), spared=unseen)

    def strangers(self) -> Iterable[str]:
        """Return nothing: other kinds, and whatever else, lie in the same folder."""
        return ()
