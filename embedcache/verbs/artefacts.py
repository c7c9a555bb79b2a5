"""Every kind of artefact in a workspace: the one list that `verify`, `gc` and `status` go by."""

from __future__ import annotations

import contextlib
from functools import partial

from embedcache.catalog.kind import CatalogFile
from embedcache.data.fold_tables import FoldTables
from embedcache.data.snapshots import Snapshots
from embedcache.encoders.kept import KeptWeights
from embedcache.errors import EmbedcacheError
from embedcache.extract.pictures import PictureStores
from embedcache.files.digests import DigestFiles
from embedcache.files.kinds import ArtefactKind
from embedcache.finetune.states import Trainings
from embedcache.runs.kind import RunsKind
from embedcache.store.kind import EmbeddingStores
from embedcache.verbs.audit_files import AuditFiles
from embedcache.verbs.comparison_files import ComparisonFiles
from embedcache.verbs.session import Session


def artefact_kinds(session: Session) -> list[ArtefactKind]:
    """Return the kinds of artefact, in the order in which they are checked.

    Derived files come first: to look at the images may write digests anew.
    """
    workspace = session.workspace
    return [
        DigestFiles(workspace.digests),
        CatalogFile(workspace),
        EmbeddingStores(workspace, partial(_image_keys, session)),
        Snapshots(workspace),
        FoldTables(workspace),
        RunsKind(session.runs),
        AuditFiles(workspace.audits),
        ComparisonFiles(workspace.comparisons),
        KeptWeights(workspace),
        Trainings(workspace),  # before pictures, which stay while a training has yet to end
        PictureStores(workspace),
    ]


def _image_keys(session: Session) -> list[str]:
    """Return the SHA-256 of each image of the manifest, as far as it is known."""
    with contextlib.suppress(EmbedcacheError):  # there is no manifest, not even a remembered one
        return [key for key in session.images.keys if key]
    return []
