"""`doctor`: what is wrong with this machine, its installation and a store, and what to do about it.

Each probe looks at one thing, may find anything in any state, and never ends the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final

from embedcache.data.tabular import Tabular
from embedcache.errors import EmbedcacheError
from embedcache.files.backend import on_disk
from embedcache.verbs.observations import Observation, Place, Status
from embedcache.workspace import MANIFEST_NAME, STORE_NAME, Workspace

if TYPE_CHECKING:
    import pyarrow as pa

# By name: where something that a probe needs is not installed, the others still look.
_PROBES: Final = {
    "machine_probes": ("versions", "extras", "devices", "weights", "network"),
    "store_probes": ("manifest", "store", "disk", "locks", "permissions"),
}


@dataclass(frozen=True, slots=True, repr=False)
class DoctorReport(Tabular):
    """What `doctor` found.

    Parameters
    ----------
    findings
        What was found, in the order of the probes.
    """

    findings: tuple[Observation, ...]

    def count(self, status: Status) -> int:
        """Return the number of findings of a status."""
        return sum(finding.status == status for finding in self.findings)

    def table(self) -> pa.Table:
        """Return one row a finding."""
        import pyarrow as pa

        names = [field.name for field in fields(Observation) if field.type != "bool"]
        return pa.Table.from_pylist(
            [{name: getattr(finding, name) for name in names} for finding in self.findings]
        )


def doctor(place: Place) -> DoctorReport:
    """Look at everything; needs neither a manifest nor a store, and changes nothing."""
    findings = [
        finding
        for module, topics in _PROBES.items()
        for topic in topics
        for finding in _examine(module, topic, place)
    ]
    return DoctorReport(tuple(findings))


def find_place(
    *,
    manifest: Path | None = None,
    store: Path | None = None,
    data_root: Path | None = None,
    offline: bool = False,
) -> Place:
    """Return what is to be looked at, whether it is there or not; see `embedcache.open`."""
    manifest = manifest or Path(MANIFEST_NAME)
    folder = store or manifest.parent / STORE_NAME
    workspace = Workspace(manifest, data_root or manifest.parent, on_disk(folder))
    return Place(workspace, offline=offline)


def _examine(module: str, topic: str, place: Place) -> Iterator[Observation]:
    """Yield what a probe finds, and as a finding what keeps it from looking."""
    try:
        probe = getattr(importlib.import_module(f"embedcache.verbs.{module}"), topic)
        yield from probe(place)
    except EmbedcacheError as error:
        yield Observation(topic, topic, "problem", str(error))
    except Exception as error:  # what is looked at may be broken in any way
        reason = " ".join(str(error).split())[:200]
        message = f"cannot be looked at: {type(error).__name__}: {reason}"
        remedy = "report it with `embedcache doctor --bundle FILE`"
        yield Observation(topic, topic, "problem", message, remedy)
