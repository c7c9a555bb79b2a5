"""The kinds of artefact of a workspace, each by its own rules."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from embedcache.data.fold_tables import FoldTables, store_fold_table
from embedcache.data.snapshots import Snapshots, save_snapshot
from embedcache.encoders.kept import KeptWeights
from embedcache.extract.pictures import PictureStores
from embedcache.files.backend import Location, on_disk
from embedcache.files.digests import DigestFiles, sha256
from embedcache.files.documents import seal
from embedcache.files.kinds import FOLD_TABLES, ArtefactKind, Reference, check_references
from embedcache.files.locks import marked
from embedcache.finetune.states import Trainings
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.store.kind import EmbeddingStores
from embedcache.testing import MemoryBackend
from embedcache.workspace import Workspace

FP = "f" * 64


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    store = on_disk(tmp_path / ".embedcache")
    return Workspace(tmp_path / "data_manifest.csv", tmp_path, store)


def images(number: int) -> pa.Table:
    return pa.table({"image_id": [f"i{number}"], "path": ["p"], "sha256": ["0" * 64]})


def embedding_store(folder: Location, **context: str) -> EmbeddingStore:
    document = {"name": "e", "fingerprint": FP, "identity": {"dim": 1}, "spec": {}}
    store = EmbeddingStore.open_or_create(folder, document)
    store.append(["0" * 64], [[1.0]] * pa.array([1]).to_numpy().astype("float32"), context=context)
    return store


@pytest.fixture
def full(workspace) -> Workspace:
    """A workspace with an artefact of each kind below the runs."""
    content = save_snapshot(workspace, images(1))
    save_snapshot(workspace, images(2))
    store_fold_table(workspace, "0123456789abcdef", {"P1": 0, "P2": 1})
    embedding_store(workspace.encoders / f"e-{FP[:12]}", manifest=content)
    embedding_store(workspace.pixels / f"crop-8x8-{FP[:12]}")
    weights = on_disk(workspace.weights) / "finetune-1"
    (weights / "fold-0.safetensors").put(b"weights")
    digest = sha256(b"weights")
    entry = {"fold": 0, "file": "fold-0.safetensors", "sha256": digest, "trained_on": []}
    (weights / "encoders.json").put(seal({"spec": {}, "encoders": [entry]}))
    (on_disk(workspace.training) / "finetune-2" / "fold-0" / "state.pt").put(b"state")
    workspace.digests.write_bytes(b"00000000\n")
    return workspace


def kinds_of(workspace: Workspace) -> list[ArtefactKind]:
    kinds = (EmbeddingStores, Snapshots, FoldTables, KeptWeights, Trainings, PictureStores)
    return [DigestFiles(workspace.digests), *(kind(workspace) for kind in kinds)]


def damages(kind: ArtefactKind) -> list[str]:
    return [damage.problem for item in kind.items() for damage in kind.check(item)]


def test_every_kind_lists_what_it_knows_with_its_size_and_finds_it_whole(full):
    kinds = kinds_of(full)
    assert [len(kind.items()) for kind in kinds] == [1, 1, 2, 1, 1, 1, 1]
    assert len({kind.name for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert kind.size() > 0, kind.name
        assert damages(kind) == [], kind.name
    assert list(check_references(kinds)) == []


def test_what_no_kind_knows_is_neither_listed_nor_deleted(full):
    strangers = [
        "notes.txt",
        "mine/a.txt",
        "encoders/notes.txt",
        "encoders/my-own-folder/encoder.json",
        "folds/mine.parquet",
        "folds/mine.00000000.parquet",
        "manifests/mine.00000000.parquet",
        "weights/mine/model.safetensors",
        "pixels/mine/a.png",
    ]
    for name in strangers:
        (full.store / name).put(b"not ours")
    kinds = kinds_of(full)
    assert [len(kind.items()) for kind in kinds] == [1, 1, 2, 1, 1, 1, 1]
    for kind in kinds:
        assert damages(kind) == []
        kind.sweep(-1)
    assert all((full.store / name).read() == b"not ours" for name in strangers)


@pytest.mark.parametrize("number", range(5))
def test_a_damaged_artefact_is_found_by_its_kind_alone_and_mended(full, number):
    kinds = [kind for kind in kinds_of(full) if not isinstance(kind, DigestFiles | Trainings)]
    kind = kinds[number]
    item = kind.items()[0]
    files = [entry.name for entry in item.list(deep=True)] or [""]
    name = next((name for name in files if name.endswith(("c/0/0", ".safetensors"))), files[0])
    file = item / name if name else item
    data = bytearray(file.read())
    data[0] ^= 1
    file.replace(bytes(data))
    assert [other.name for other in kinds if damages(other)] == [kind.name]
    mended = kind.mend(item)
    lost = {"0" * 64} if isinstance(kind, EmbeddingStores) else set()
    assert damages(kind) == ["has lost 1 rows that are not encoded again yet"] * len(lost)
    assert "\n" not in mended.message
    assert mended.lost_keys == lost


def test_damaged_digests_are_removed(full):
    kind = DigestFiles(full.digests)
    full.digests.write_bytes(b"0\nx")
    assert damages(kind) == ["is damaged or cannot be read (derived: it is ignored)"]
    kind.mend(kind.items()[0])
    assert kind.items() == []


def test_what_an_artefact_names_but_is_gone_is_found_once(full):
    first, second = Snapshots(full).items()
    first.delete()
    kinds = kinds_of(full)
    (damage,) = check_references(kinds)  # the encoder's record and the next snapshot name it
    content = first.name.split("-")[1].split(".")[0]
    assert damage.path == full.manifests / content
    assert damage.problem == f"is missing, but e-{FP[:12]} names it"
    assert second.exists()
    assert FoldTables(full).holds("0123456789abcdef")
    assert not FoldTables(full).holds("0" * 16)
    assert Reference(FOLD_TABLES, "0" * 16) != Reference(FOLD_TABLES, "1" * 16)


def test_pictures_go_when_no_training_has_yet_to_end(full):
    pictures, trainings = PictureStores(full), Trainings(full)
    assert pictures.sweep(-1) == trainings.sweep(-1) == 0
    (full.runs / "finetune-2" / "run.json").put(b"{}")
    with marked(full.training):
        assert pictures.sweep(-1) == trainings.sweep(-1) == 0
        (item,) = pictures.items()
        assert "is in use by a training" in pictures.mend(item).message
    assert trainings.sweep(600) == len(b"state")
    assert pictures.sweep(600) > 0
    assert [*pictures.items(), *trainings.items()] == []


def test_weights_without_their_document_are_the_leftover_of_a_killed_save(full):
    kept = KeptWeights(full)
    (kept.folder / "finetune-3" / "fold-0.safetensors").put(b"half a save")
    assert kept.sweep(3600) == 0
    assert kept.sweep(-1) == len(b"half a save")
    (item,) = kept.items()
    for folder in (item, kept.folder / "finetune-4"):
        (folder / ".tmp-0123456789abcdef").put(b"cut short")
    assert kept.sweep(3600) == 0
    assert kept.sweep(-1) == 2 * len(b"cut short")
    assert [folder.path for folder in kept.folder.folders()] == [item.path]


def test_kinds_on_another_storage_list_what_is_there(tmp_path):
    workspace = Workspace(tmp_path / "m.csv", tmp_path, Location(MemoryBackend(), "s"))
    workspace.create_store()
    store_fold_table(workspace, "0123456789abcdef", {"P1": 0})
    assert len(FoldTables(workspace).items()) == 1
    assert Path(workspace.local).is_dir()
