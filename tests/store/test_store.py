from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from pathlib import Path

import google_crc32c
import numpy as np
import pyarrow as pa
import pytest
import tensorstore
import zarr

from embedcache.errors import (
    StoreCorruptError,
    StoreMismatchError,
    StoreReadError,
    StoreWriteError,
)
from embedcache.files import durable
from embedcache.files.backend import LocalBackend, on_disk
from embedcache.files.documents import find_table, put_table, read_table
from embedcache.files.marks import is_withdrawn, withdraw
from embedcache.store import care, commits, layout, segment
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.store.sweep import sweep

DIM = 6
OTHER_ID = "20000101T000000000000-0123456789ab"


def document(fingerprint: str = "f" * 64) -> dict:
    return {"name": "fake", "fingerprint": fingerprint, "identity": {"dim": DIM}, "spec": {}}


def keys(first: int, last: int) -> list[str]:
    return [f"{number:064x}" for number in range(first, last)]


def rows(first: int, last: int) -> np.ndarray:
    numbers = np.arange(first, last)[:, None]
    return (numbers * 10 + np.arange(DIM)).astype(np.float32)


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    """Two commits: images 0-4, and 5-7 with image 8 failed."""
    made = EmbeddingStore.open_or_create(on_disk(tmp_path / "encoder"), document())
    made.append(keys(0, 5), rows(0, 5))
    made.append(keys(5, 8), rows(5, 8), failures={keys(8, 9)[0]: "a broken file"})
    return made


def again(store: EmbeddingStore) -> EmbeddingStore:
    return EmbeddingStore(store.folder)


def segment_on_disk(store: EmbeddingStore) -> Path:
    return Path(layout.segment_folder(store.folder, store.records[0].id))


def data_files(store: EmbeddingStore) -> list[Path]:
    files = (path for path in Path(store.folder).rglob("*") if path.is_file())
    return sorted(path for path in files if path.name != "LOCK")


def test_what_is_appended_is_read_back_in_any_order(store):
    assert np.array_equal(again(store).read(keys(0, 8)), rows(0, 8))
    wanted = [7, 0, 0, 5, 3]
    mixed = [keys(number, number + 1)[0] for number in wanted]
    assert np.array_equal(store.read(mixed), rows(0, 8)[wanted])
    assert store.read([]).shape == (0, DIM)
    assert store.failures == again(store).failures == {keys(8, 9)[0]: "a broken file"}


@pytest.mark.parametrize("n", [1, 17, 1024, 1025, 3000])
def test_every_size_reads_back_by_chunk_and_by_row(tmp_path, n):
    store = EmbeddingStore.open_or_create(on_disk(tmp_path / "e"), document())
    store.append(keys(0, n), rows(0, n))
    held = again(store)
    assert np.array_equal(held.read(keys(0, n)), rows(0, n))
    last = keys(n - 1, n)
    assert np.array_equal(held.read(last), rows(n - 1, n))
    backwards = list(reversed(keys(0, n)))
    assert np.array_equal(held.read(backwards), rows(0, n)[::-1])


def test_an_unknown_image_is_a_lookup_error_not_an_empty_row(store):
    with pytest.raises(LookupError, match=f"1 images have no row, first {'0' * 62}63"):
        store.read([keys(0, 1)[0], keys(99, 100)[0]])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_or_of_another_shape_are_refused(store, bad):
    broken = rows(20, 22)
    broken[1, 3] = bad
    with pytest.raises(ValueError, match="all finite"):
        store.append(keys(20, 22), broken)
    with pytest.raises(ValueError, match=r"rows of shape \(2, 6\), expected \(3, 6\)"):
        store.append(keys(20, 23), rows(20, 22))
    assert len(again(store)) == 8


def test_a_damaged_row_that_a_repair_takes_out_meanwhile_is_damage_still(store):
    flip(segment_on_disk(store) / "c" / "0" / "0")
    care.mend_store(store.folder)
    sweep(store.folder, grace_s=-1)
    with pytest.raises(StoreCorruptError, match="is missing; run `embedcache verify --repair`"):
        store.rewrite(store.row_keys())


def test_another_encoder_in_the_same_folder_is_refused(store):
    with pytest.raises(StoreMismatchError, match="holds fingerprint ffffffffffff, expected 0000"):
        EmbeddingStore.open_or_create(store.folder, document("0" * 64))


def test_plain_zarr_reads_it_in_two_lines(store):
    store.rewrite(store.row_keys())
    path = segment_on_disk(store)
    array = zarr.open(path, mode="r")
    assert np.array_equal(array[:], rows(0, 8))


def test_tensorstore_reads_it(store):
    store.rewrite(store.row_keys())
    path = segment_on_disk(store)
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path)}}
    assert np.array_equal(tensorstore.open(spec).result().read().result(), rows(0, 8))


def test_a_chunk_is_rows_and_their_checksum_and_the_fill_is_not_a_number(store):
    path = segment_on_disk(store)
    chunk = (path / "c" / "0" / "0").read_bytes()
    assert chunk[:-4] == rows(0, 5).tobytes()
    assert int.from_bytes(chunk[-4:], "little") == google_crc32c.value(chunk[:-4])
    metadata = json.loads((path / "zarr.json").read_text())
    assert metadata["fill_value"] == "NaN"
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "crc32c"]


def test_a_reader_sees_what_others_commit_only_when_it_looks_again(store):
    reader = again(store)
    store.append(keys(20, 21), rows(20, 21))
    assert keys(20, 21)[0] not in reader
    reader.refresh()
    assert keys(20, 21)[0] in reader


def test_of_two_rows_for_one_image_one_is_read_and_the_choice_is_stable(store):
    other = again(store)
    store.append(keys(30, 31), rows(30, 31))
    other.append(keys(30, 31), rows(40, 41))
    assert np.array_equal(again(store).read(keys(30, 31)), rows(30, 31))
    store.refresh()
    store.rewrite(store.row_keys())
    assert np.array_equal(again(store).read(keys(30, 31)), rows(30, 31))


def test_a_rewrite_orders_drops_and_flips_in_one_step(store):
    order = [keys(n, n + 1)[0] for n in (6, 1, 0)]
    before = again(store)
    store.rewrite(order)
    after = again(store)
    assert after.row_keys() == order
    assert len(after.records) == 1
    assert after.failures == before.failures
    # A reader that listed the old records reads on from them.
    assert np.array_equal(before.read(keys(0, 8)), rows(0, 8))


def test_a_reader_whose_segments_were_swept_meanwhile_finds_the_new_one(store):
    before = again(store)
    store.rewrite(store.row_keys())
    sweep(store.folder, grace_s=-1)
    assert np.array_equal(before.read(keys(0, 8)), rows(0, 8))


def test_sweeping_leaves_the_young_and_the_live_and_nothing_comes_back(store):
    for _ in range(3):
        store.rewrite(store.row_keys())
    assert sweep(store.folder, grace_s=3600) == 0
    assert len(layout.record_files(store.folder)) == 5
    (layout.segment_folder(store.folder, OTHER_ID) / "c" / "0" / "0").put(b"x" * 10)
    (store.folder / "commit" / ".tmp-1").put(b"")
    unknown = (store.folder / "seg" / "mine.zarr" / "zarr.json", store.folder / "notes" / "a.txt")
    for file in unknown:
        file.put(b"not ours")
    assert sweep(store.folder, grace_s=-1) > 10
    assert all(file.read() == b"not ours" for file in unknown)
    assert len(data_files(store)) == 6  # encoder.json, one record, zarr.json, one chunk; not ours
    assert again(store).row_keys() == store.row_keys()


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_sweep_cut_short_brings_no_dropped_row_back(store, kept):
    """Whatever subset of void records a crash leaves, dropped rows stay dropped."""
    store.rewrite(keys(0, 5))
    store.rewrite(keys(0, 3))
    void = list(layout.record_files(store.folder).values())[:-1]
    assert len(void) == 3
    for number, file in enumerate(void):
        if number != kept:
            file.delete()
    assert again(store).row_keys() == keys(0, 3)


def test_a_full_disk_is_a_clear_error_and_nothing_is_lost(store, monkeypatch):
    real_fsync = os.fsync

    def fail_at(number):
        numbers = itertools.count(1)

        def fsync(descriptor):
            if next(numbers) == number:
                raise OSError(errno.ENOSPC, "No space left on device")
            real_fsync(descriptor)

        return fsync

    at_rest = data_files(store)
    for number in range(1, 11):
        monkeypatch.setattr(os, "fsync", fail_at(number))
        with pytest.raises(StoreWriteError, match="No space left on device.*free some space"):
            store.append(keys(50, 53), rows(50, 53))
        monkeypatch.setattr(os, "fsync", real_fsync)
        assert data_files(store) == at_rest, f"leftovers after failing at fsync {number}"
        assert len(again(store)) == 8
    store.append(keys(50, 53), rows(50, 53))
    assert np.array_equal(again(store).read(keys(50, 53)), rows(50, 53))


# Damage. Every file of a store, flipped, cut and deleted: found, named, and never read as data.


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def delete(path: Path) -> None:
    path.unlink()


KINDS = ["encoder.json", "commit/first", "commit/last", "zarr.json", "c/0/0"]


def victim(store: EmbeddingStore, kind: str) -> Path:
    if kind == "encoder.json":
        return Path(store.folder / kind)
    if kind.startswith("commit"):
        files = list(layout.record_files(store.folder).values())
        return Path(files[0] if kind.endswith("first") else files[-1])
    return segment_on_disk(store) / kind


@pytest.mark.parametrize("harm", [flip, cut, delete])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("compacted", [False, True])
def test_damage_anywhere_is_named_and_never_read(store, harm, kind, compacted):
    if compacted:
        store.rewrite(store.row_keys())
        sweep(store.folder, grace_s=-1)
    path = victim(store, kind)
    harm(path)
    found = list(care.check_store(store.folder))
    named = [damage for damage in found if Path(damage.path) == path]
    if kind.startswith("commit") and harm is delete:
        # The file is gone, so its orphaned segment or a later record tells.
        record_id = layout.table_stem(path.name)
        named = [damage for damage in found if record_id in damage.path.name]
    assert named, found
    assert all(damage.problem for damage in named)
    try:
        read = EmbeddingStore(store.folder).read(keys(0, 8))
    except (StoreCorruptError, LookupError):
        pass
    else:
        pytest.fail(f"read {read.shape} from a damaged store")


@pytest.mark.parametrize("harm", [flip, cut, delete])
@pytest.mark.parametrize("kind", KINDS)
def test_mending_keeps_every_row_that_can_be_kept(store, harm, kind):
    harm(victim(store, kind))
    every = keys(0, 8)
    report = care.mend_store(store.folder, lambda: every)
    mended = EmbeddingStore(store.folder)
    for key in mended.row_keys():
        number = int(key, 16)
        assert np.array_equal(mended.read([key]), rows(number, number + 1))
    lost = {
        "encoder.json": 0,
        "zarr.json": 0,
        "commit/first": 5,
        "commit/last": 3,
        "c/0/0": {flip: 1, cut: 3, delete: 5}[harm],
    }[kind]
    assert len(mended) == 8 - lost
    assert report.lost_keys == mended.lost == set(every) - set(mended.row_keys())
    # What was lost stays a finding until it is there again, however often it is mended.
    for _ in range(2):
        found = care.check_store(store.folder)
        assert [damage.path for damage in found] == ([store.folder] if lost else [])
        assert {key for damage in found for key in damage.keys} == report.lost_keys
        assert care.mend_store(store.folder).lost_keys == report.lost_keys
    mended.append(every, rows(0, 8))
    assert care.check_store(store.folder) == []


def test_a_flipped_bit_costs_one_row_not_its_chunk(tmp_path):
    store = EmbeddingStore.open_or_create(on_disk(tmp_path / "e"), document())
    store.append(keys(0, 2000), rows(0, 2000))
    chunk = segment_on_disk(store) / "c" / "1" / "0"
    data = bytearray(chunk.read_bytes())
    data[DIM * 4 * 7 + 5] ^= 1
    chunk.write_bytes(data)
    (damage,) = care.check_store(store.folder)
    assert Path(damage.path) == chunk
    assert damage.keys == (keys(1007, 1008)[0],)
    held = EmbeddingStore(store.folder)
    assert np.array_equal(held.read(keys(1006, 1007)), rows(1006, 1007))  # its neighbour is fine
    with pytest.raises(StoreCorruptError, match="row 7, image 0000.*does not match its checksum"):
        held.read(keys(1007, 1008))
    with pytest.raises(StoreCorruptError, match="does not match its checksum"):
        held.read(keys(0, 2000))
    mended = care.mend_store(store.folder)
    assert "1999 rows of damaged segments saved" in mended.message
    assert mended.lost_keys == {keys(1007, 1008)[0]}


def test_two_chunks_that_changed_places_are_found(tmp_path):
    store = EmbeddingStore.open_or_create(on_disk(tmp_path / "e"), document())
    store.append(keys(0, 2000), rows(0, 2000))
    root = segment_on_disk(store) / "c"
    shutil.move(root / "0" / "0", root / "x")
    shutil.move(root / "1" / "0", root / "0" / "0")
    shutil.move(root / "x", root / "1" / "0")
    with pytest.raises(StoreCorruptError, match="does not match its checksum"):
        EmbeddingStore(store.folder).read(keys(0, 2000))
    assert {damage.path.parent.name for damage in care.check_store(store.folder)} == {"0", "1"}


def test_a_lost_encoder_json_without_records_cannot_be_mended(tmp_path):
    store = EmbeddingStore.open_or_create(on_disk(tmp_path / "e"), document())
    (store.folder / "encoder.json").delete()
    with pytest.raises(StoreCorruptError, match="is missing and no record repeats it; put it back"):
        care.mend_store(store.folder)


def test_an_interrupted_write_is_not_damage(store):
    """A segment that was cut short before its record is a leftover, and is swept."""
    folder = layout.segment_folder(store.folder, OTHER_ID)
    n_rows = 5
    segment.write_segment(folder, n_rows, DIM, iter([rows(0, n_rows)]))
    (folder / "c" / "0" / "0").delete()
    assert list(care.check_store(store.folder)) == []
    sweep(store.folder, grace_s=-1)
    assert not Path(folder).exists()


def test_the_lock_keeps_a_second_pass_waiting_and_says_so(store):
    from threading import Event, Thread

    other, said, done = again(store), Event(), Event()

    def wait() -> None:
        with other.lock(said.set):
            done.set()

    with store.lock():
        thread = Thread(target=wait)
        thread.start()
        assert said.wait(10)
        assert not done.is_set()
    thread.join(10)
    assert done.is_set()


def test_a_rewrite_keeps_what_others_committed_since_it_looked(store):
    other = again(store)
    other.append(keys(20, 22), rows(20, 22))
    store.rewrite(keys(0, 8))
    assert np.array_equal(again(store).read(keys(20, 22)), rows(20, 22))
    assert np.array_equal(again(store).read(keys(0, 8)), rows(0, 8))


@pytest.mark.parametrize("moment", ["before the record", "after the record"])
def test_an_interruption_leaves_no_rows_that_nothing_names(store, monkeypatch, moment):
    put = layout.put_record

    def interrupted(folder, record):
        if moment == "after the record":
            put(folder, record)
        raise KeyboardInterrupt

    monkeypatch.setattr(layout, "put_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.append(keys(20, 22), rows(20, 22))
    assert list(care.check_store(store.folder)) == []
    assert (keys(20, 21)[0] in again(store)) == (moment == "after the record")


def test_a_record_whose_folder_could_not_be_flushed_is_not_there(store, monkeypatch):
    real_fsync = durable.fsync

    def refuse(path):
        if any(path.glob("*-*.*.parquet")) and len(list(path.glob("*.parquet"))) > 2:
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        real_fsync(path)

    monkeypatch.setattr(durable, "fsync", refuse)
    with pytest.raises(StoreWriteError, match="Disk quota exceeded"):
        store.append(keys(20, 22), rows(20, 22))
    assert len(again(store)) == 8
    assert list(care.check_store(store.folder)) == []


def test_a_torn_record_of_a_killed_writer_is_no_record(store):
    torn = store.folder / "commit" / "20991231T000000000000-abcdefabcdef.00000000.parquet"
    torn.put(b"PAR1")
    with pytest.raises(StoreCorruptError, match="does not match the checksum"):
        again(store)
    layout.intent_path(store.folder, "20991231T000000000000-abcdefabcdef").replace(b"")
    assert len(again(store)) == 8


def test_files_of_others_are_no_records(store):
    (store.folder / "commit" / "._x.00000000.parquet").put(b"of another system")
    (store.folder / "commit" / "backup.parquet").put(b"of somebody else")
    assert len(again(store)) == 8
    assert list(care.check_store(store.folder)) == []


def test_a_store_that_cannot_be_locked_is_a_clear_error(store, monkeypatch):
    def refuse(descriptor, operation):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StoreWriteError, match=r"LOCK: Read-only file system"), store.lock():
        pass


def test_a_leftover_that_another_sweep_takes_first_is_no_error(store, monkeypatch):
    leftover = store.folder / "commit" / ".tmp-0123456789abcdef"
    leftover.put(b"cut short")
    real = LocalBackend.delete

    def overtaken(self, name):
        real(self, name)
        real(self, name)

    monkeypatch.setattr(LocalBackend, "delete", overtaken)
    sweep(store.folder, grace_s=-1)
    assert not leftover.exists()
    assert len(store.read(keys(0, 5))) == 5


def test_a_chunk_of_zeros_is_stored_like_any_other(tmp_path):
    """Zero is the fill value of bytes; zarr leaves such a chunk out unless it is told not to."""
    black = {"identity": {"dim": DIM, "dtype": "uint8"}}
    store = EmbeddingStore.open_or_create(on_disk(tmp_path / "e"), {**document(), **black})
    store.append(keys(0, 3), np.zeros((3, DIM), np.float32))
    assert np.array_equal(again(store).read(keys(0, 3)), np.zeros((3, DIM)))


def test_a_commit_that_ends_while_a_repair_looks_is_not_taken_for_an_orphan(store, monkeypatch):
    """The record comes, and its mark goes, between the list of records and the look for marks."""
    put, intent_path, published = layout.put_record, layout.intent_path, []

    def put_late(folder, record):
        def looked_for(folder, record_id):
            if record_id == record.id and not published:
                published.append(put(folder, record))
                intent_path(folder, record_id).delete()
            return intent_path(folder, record_id)

        monkeypatch.setattr(layout, "put_record", put)
        monkeypatch.setattr(layout, "intent_path", looked_for)
        care.mend_store(folder)
        monkeypatch.setattr(layout, "intent_path", intent_path)
        return published[0]

    flip(segment_on_disk(store) / "c" / "0" / "0")
    monkeypatch.setattr(layout, "put_record", put_late)
    other = EmbeddingStore(store.folder)
    other.append(keys(20, 22), rows(20, 22))
    assert len(published) == 1
    assert np.array_equal(again(store).read(keys(20, 22)), rows(20, 22))


def append_and(store, monkeypatch, moment: str, event) -> None:
    """Append two rows, with something that happens before or after their record is put."""
    put = layout.put_record

    def put_and(folder, record):
        if moment == "before":
            event()
        file = put(folder, record)
        if moment == "after":
            event()
        return file

    with monkeypatch.context() as patch:
        patch.setattr(layout, "put_record", put_and)
        store.append(keys(20, 22), rows(20, 22))


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("grace_s", [-1, 0])
def test_a_commit_under_way_is_never_swept(store, monkeypatch, moment, grace_s):
    append_and(store, monkeypatch, moment, lambda: sweep(store.folder, grace_s=grace_s))
    assert np.array_equal(again(store).read(keys(20, 22)), rows(20, 22))
    assert care.check_store(store.folder) == []


def test_a_writer_that_seemed_dead_takes_its_record_back(store, monkeypatch):
    """As one of another machine, or one stopped for long, whose lock nobody sees."""
    monkeypatch.setattr(durable, "_hold", lambda _: None)
    at_rest = data_files(store)
    with pytest.raises(StoreWriteError, match="took this write for a killed one's leftover"):
        append_and(store, monkeypatch, "before", lambda: sweep(store.folder, grace_s=0))
    assert data_files(store) == at_rest
    assert len(again(store)) == 8
    # Where the record is there already, the sweep leaves it alone.
    append_and(store, monkeypatch, "after", lambda: sweep(store.folder, grace_s=0))
    assert len(again(store)) == 10


def test_a_sweep_that_ends_between_a_writers_two_looks_is_seen(store, monkeypatch):
    put, look = layout.put_record, commits.is_withdrawn

    def put_once_withdrawn(folder, record):
        withdraw(layout.intent_path(folder, record.id))
        return put(folder, record)

    def look_after_the_sweep(intent):
        layout.segment_folder(store.folder, layout.intended_id(intent.name)).delete()
        intent.delete()
        return look(intent)

    with monkeypatch.context() as patch:
        patch.setattr(layout, "put_record", put_once_withdrawn)
        patch.setattr(commits, "is_withdrawn", look_after_the_sweep)
        with pytest.raises(StoreWriteError, match="took this write for a killed one's leftover"):
            store.append(keys(20, 22), rows(20, 22))
    assert len(again(store)) == 8
    assert care.check_store(store.folder) == []


def test_a_write_whose_mark_is_gone_is_withdrawn_before_its_rows_are_deleted(store, monkeypatch):
    monkeypatch.setattr(segment, "is_complete", lambda _: False)  # its last chunk is to come

    def unmarked_and_swept():
        [record_id] = layout.segment_folders(store.folder).keys() - {r.id for r in store.records}
        intent = layout.intent_path(store.folder, record_id)
        intent.delete()

        def find(folder, stem):
            assert is_withdrawn(intent)
            return find_table(folder, stem)

        monkeypatch.setattr("embedcache.store.sweep.find_table", find)
        sweep(store.folder, grace_s=-1)

    with pytest.raises(StoreWriteError, match="took this write for a killed one's leftover"):
        append_and(store, monkeypatch, "before", unmarked_and_swept)
    assert len(again(store)) == 8


def test_a_writer_of_another_machine_has_the_usual_grace_time(store, monkeypatch):
    monkeypatch.setattr(durable, "_hold", lambda _: None)
    monkeypatch.setattr("platform.node", lambda: "far-away")

    def swept_here():
        monkeypatch.setattr("platform.node", lambda: "here")
        sweep(store.folder, grace_s=0)

    append_and(store, monkeypatch, "before", swept_here)
    assert len(again(store)) == 10


@pytest.mark.parametrize("at", ["before the record", "after the record"])
def test_a_killed_writers_leftovers_go(store, monkeypatch, at):
    at_rest = data_files(store)

    def killed(*_):
        raise SystemExit

    with monkeypatch.context() as patch:
        # As a kill leaves it: nothing is put away.
        patch.setattr("embedcache.store.commits.find_table", killed)
        patch.setattr(LocalBackend, "delete", killed)
        with pytest.raises(SystemExit):
            append_and(store, patch, at.split()[0], killed)
    assert len(data_files(store)) == len(at_rest) + (3 if at.startswith("before") else 4)
    assert care.check_store(store.folder) == []
    sweep(store.folder, grace_s=60)
    assert care.check_store(store.folder) == []
    sweep(store.folder, grace_s=0)
    assert care.check_store(store.folder) == []
    assert len(data_files(store)) == len(at_rest) + (0 if at.startswith("before") else 3)


def test_a_segment_that_lost_its_record_is_damage_and_not_swept(store):
    file = next(iter(layout.record_files(store.folder).values()))
    file.delete()
    sweep(store.folder, grace_s=-1)
    assert "holds rows that no record names" in care.check_store(store.folder)[-1].problem
    care.mend_store(store.folder)
    assert care.check_store(store.folder) == []
    sweep(store.folder, grace_s=-1)
    assert len(layout.segment_folders(store.folder)) == 2  # of the last record, and of the mending


def test_a_record_copied_under_another_name_is_not_read(store):
    file = Path(next(iter(layout.record_files(store.folder).values())))
    copy = file.with_name(f"{OTHER_ID}.{file.name[-16:]}")
    shutil.copy(file, copy)
    assert len(again(store).records) == 2
    assert care.check_store(store.folder) == []
    assert [Path(path) for path in care.copied_records(store.folder)] == [copy]
    again(store).rewrite(store.row_keys())
    sweep(store.folder, grace_s=-1)
    assert copy.exists()


def test_files_of_two_segments_that_changed_places_are_found(store):
    first, second = (
        Path(layout.segment_folder(store.folder, record.id)) for record in store.records
    )
    first.rename(first.with_name("aside"))
    second.rename(first)
    first.with_name("aside").rename(second)
    with pytest.raises(StoreCorruptError):
        again(store).read(keys(0, 8))
    assert len(care.check_store(store.folder)) >= 2


def test_a_record_of_another_shape_is_refused_and_not_mended(store):
    table = pa.table({"key": ["x"]})
    put_table(store.folder / "commit", "20991231T000000000000-abcdefabcdef", table)
    for look in (again, lambda _: care.check_store(store.folder)):
        with pytest.raises(StoreReadError, match="of a shape that this release does not know"):
            look(store)


@pytest.mark.parametrize("name", ["dim", "chunk_rows"])
def test_a_record_of_chunks_that_hold_nothing_is_refused(store, name):
    file = layout.record_files(store.folder)[store.records[0].id]
    table = read_table(file)
    metadata = {**json.loads(table.schema.metadata[b"embedcache"]), name: 0}
    file.delete()
    table = table.replace_schema_metadata({b"embedcache": json.dumps(metadata).encode()})
    put_table(store.folder / "commit", store.records[0].id, table)
    flip(segment_on_disk(store) / "c" / "0" / "0")
    for look in (again, lambda _: care.check_store(store.folder)):
        with pytest.raises(StoreReadError, match="of a shape that this release does not know"):
            look(store)


def test_a_mending_holds_a_few_chunks_in_memory(tmp_path, monkeypatch):
    store = EmbeddingStore.open_or_create(on_disk(tmp_path / "e"), document())
    for first in (0, 3000):
        store.append(keys(first, first + 3000), rows(first, first + 3000))
    for record in store.records:
        flip(Path(layout.segment_folder(store.folder, record.id)) / "c" / "1" / "0")
    salvaged_rows, sizes = segment.salvaged_rows, []

    def counted(*arguments):
        block = salvaged_rows(*arguments)
        sizes.append(len(block))
        return block

    monkeypatch.setattr(segment, "salvaged_rows", counted)
    mended = care.mend_store(store.folder)
    assert len(mended.lost_keys) == 2
    assert max(sizes) <= segment.MOST_CHUNK_ROWS
    store.refresh()
    for key in (store.row_keys()[0], store.row_keys()[-1]):
        assert np.array_equal(store.read([key]), rows(int(key, 16), int(key, 16) + 1))
    assert len(store) == 5998


def test_what_is_left_inside_a_live_segment_is_swept(tmp_path):
    store = EmbeddingStore.open_or_create(on_disk(tmp_path / "e"), document())
    store.append(keys(0, 3), rows(0, 3))
    array = layout.segment_folder(store.folder, store.records[0].id)
    for place in (array, array / "c" / "0"):
        (place / ".tmp-0123456789abcdef").put(b"refused")
    assert sweep(store.folder, grace_s=3600) == 0
    assert sweep(store.folder, grace_s=-1) == 2 * len(b"refused")
    store.refresh()
    assert np.array_equal(store.read(keys(0, 3)), rows(0, 3))
