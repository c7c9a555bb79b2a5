"""The same store in a storage that has no files, folders or locks."""

from __future__ import annotations

import numpy as np
import pytest
from test_store import DIM, document, keys, rows

from embedcache.errors import StoreCorruptError, StoreWriteError
from embedcache.files.backend import Location
from embedcache.store import care
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.store.sweep import sweep
from embedcache.testing import MemoryBackend


@pytest.fixture
def store() -> EmbeddingStore:
    """Two commits: images 0-4, and 5-7 with image 8 failed."""
    made = EmbeddingStore.open_or_create(Location(MemoryBackend(), "encoders/e"), document())
    made.append(keys(0, 5), rows(0, 5))
    made.append(keys(5, 8), rows(5, 8), failures={keys(8, 9)[0]: "a broken file"})
    return made


def names(store: EmbeddingStore) -> list[str]:
    return [entry.name for entry in store.folder.list(deep=True, hidden=True)]


def test_rows_are_appended_reopened_and_rewritten(store):
    again = EmbeddingStore(store.folder)
    assert np.array_equal(again.read(keys(0, 8)), rows(0, 8))
    assert again.failures == {keys(8, 9)[0]: "a broken file"}
    with again.lock():
        again.rewrite(keys(2, 8))
    assert EmbeddingStore(store.folder).row_keys() == keys(2, 8)
    assert np.array_equal(again.read([keys(7, 8)[0], keys(2, 3)[0]]), rows(0, 8)[[7, 2]])


def test_a_sweep_leaves_one_record_and_its_segment(store):
    store.rewrite(store.row_keys())
    assert sweep(store.folder) == 0
    assert sweep(store.folder, grace_s=-1) > 0
    (record,) = store.records
    kinds = [name.replace(record.id, "ID") for name in names(store)]
    assert [kind.split(".")[0] for kind in kinds] == ["commit/ID", "encoder", "seg/ID", "seg/ID"]
    assert list(care.check_store(store.folder)) == []


@pytest.mark.parametrize("harm", ["cut", "flip", "delete"])
@pytest.mark.parametrize("part", ["encoder.json", "commit/", "zarr.json", "c/0/0"])
def test_damage_is_found_and_mended_without_the_lost_rows(store, harm, part):
    name = next(name for name in names(store) if part in name)
    file = store.folder / name
    data = bytearray(file.read())
    data[len(data) // 2] ^= 4
    changed = {"cut": bytes(data[: len(data) // 2]), "flip": bytes(data)}
    file.replace(changed[harm]) if harm in changed else file.delete()
    assert list(care.check_store(store.folder))
    with pytest.raises((StoreCorruptError, LookupError)):
        EmbeddingStore(store.folder).read(keys(0, 8))
    mended = care.mend_store(store.folder, lambda: keys(0, 8))
    held = EmbeddingStore(store.folder)
    assert mended.lost_keys == held.lost == set(keys(0, 8)) - set(held.row_keys())
    assert [d.path for d in care.check_store(store.folder)] == [store.folder] * bool(held.lost)
    for key in held.row_keys():
        assert np.array_equal(held.read([key]), rows(int(key, 16), int(key, 16) + 1))


def test_a_refused_chunk_leaves_nothing(store, monkeypatch):
    before = names(store)
    put = MemoryBackend.put

    def refuse(self, name, data):
        if "/c/1/" in name:
            raise StoreWriteError("the bucket is full")
        put(self, name, data)

    monkeypatch.setattr(MemoryBackend, "put", refuse)
    with pytest.raises(StoreWriteError, match="the bucket is full"):
        store.append(keys(10, 2010), np.zeros((2000, DIM), np.float32))
    assert names(store) == before
    assert len(EmbeddingStore(store.folder)) == 8


def test_a_compaction_holds_a_few_chunks_in_memory_however_many_there_are(store, monkeypatch):
    store.append(keys(10, 20_010), np.ones((20_000, DIM), np.float32))
    behind = []
    before = sum("/c/" in name for name in store.folder.backend.files)
    read = EmbeddingStore.read

    def counted(self, wanted):
        stored = sum("/c/" in name for name in self.folder.backend.files) - before
        behind.append(len(behind) - stored)
        return read(self, wanted)

    monkeypatch.setattr(EmbeddingStore, "read", counted)
    store.rewrite(store.row_keys())
    assert len(behind) == 20
    assert max(behind) <= 5
