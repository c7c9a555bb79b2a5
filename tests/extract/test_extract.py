from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from embedcache.data.image_files import ImageFile
from embedcache.data.manifest import image_paths
from embedcache.errors import EncoderError, EncoderWeightsError, ImageReadError, StoreWriteError
from embedcache.extract import flow, lane
from embedcache.extract.flow import run_pass
from embedcache.extract.lane import Job
from embedcache.extract.report import slowest_stage
from embedcache.files import digests as digests_module
from embedcache.files.backend import on_disk
from embedcache.files.digests import DigestCache
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import FakeEncoder, write_cohort


@pytest.fixture
def images(tmp_path: Path) -> list[ImageFile]:
    manifest = write_cohort(tmp_path, n_patients=6, n_images=2)
    paths = image_paths(manifest, tmp_path)
    return [ImageFile(i, p) for i, p in zip(manifest.column("image_id"), paths, strict=True)]


@pytest.fixture(autouse=True)
def _files_count_as_old(monkeypatch):
    monkeypatch.setattr(digests_module, "RACY_WINDOW_NS", -(10**12))


def open_store(tmp_path: Path, encoder: FakeEncoder) -> EmbeddingStore:
    document = {
        "name": encoder.spec.name,
        "fingerprint": encoder.fingerprint,
        "identity": encoder.identity,
        "spec": encoder.spec.document(),
    }
    folder = on_disk(tmp_path / "store" / encoder.fingerprint[:12])
    return EmbeddingStore.open_or_create(folder, document)


def job(tmp_path: Path, encoder: FakeEncoder, **settings) -> Job:
    return Job(encoder.spec, open_store(tmp_path, encoder), lambda: encoder, **settings)


def expected(images, encoder) -> np.ndarray:
    from embedcache.data.images import decode_image

    arrays = [encoder.preprocess(decode_image(Path(i.path).read_bytes())) for i in images]
    return encoder.encode(np.stack(arrays))


def counts(report) -> list[tuple[int, int, int, int]]:
    return [(t.n_images, t.n_cached, t.n_written, t.n_failed) for t in report.tallies]


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_every_image_is_encoded_once_and_right(tmp_path, images, workers, batch_size):
    encoder = FakeEncoder()
    report = run_pass(
        images, [job(tmp_path, encoder, batch_size=batch_size)], DigestCache(), workers=workers
    )
    assert counts(report) == [(24, 0, 24, 0)]
    store = open_store(tmp_path, encoder)
    digests = DigestCache()
    keys = [digests.file_digest(Path(image.path)) for image in images]
    assert np.array_equal(store.read(keys), expected(images, encoder))


class View(FakeEncoder):
    """Returns a view of its input, which the pass overwrites with the next batch."""

    def encode(self, batch):
        return batch.reshape(len(batch), -1)


def test_an_encoder_may_return_a_view_of_its_batch(tmp_path, images):
    encoder = View(dim=64)
    run_pass(images, [job(tmp_path, encoder, batch_size=4)], DigestCache())
    digests = DigestCache()
    keys = [digests.file_digest(Path(image.path)) for image in images]
    assert np.array_equal(open_store(tmp_path, encoder).read(keys), expected(images, encoder))


def test_a_second_pass_encodes_nothing_and_loads_nothing(tmp_path, images):
    encoder, digests = FakeEncoder(), DigestCache()
    run_pass(images, [job(tmp_path, encoder)], digests)

    def never():
        pytest.fail("the encoder was loaded")

    again = Job(encoder.spec, open_store(tmp_path, encoder), never)
    assert counts(run_pass(images, [again], digests)) == [(24, 24, 0, 0)]
    # Neither does one that has forgotten the digests: it reads, and finds all rows there.
    forgot = Job(encoder.spec, open_store(tmp_path, encoder), never)
    assert counts(run_pass(images, [forgot], DigestCache())) == [(24, 24, 0, 0)]


def test_an_unchanged_file_is_not_even_opened(tmp_path, images, monkeypatch):
    encoder, digests = FakeEncoder(), DigestCache()
    run_pass(images, [job(tmp_path, encoder)], digests)
    monkeypatch.setattr(flow, "read_and_hash", lambda *_: pytest.fail("a file was read"))
    assert counts(run_pass(images, [job(tmp_path, encoder)], digests)) == [(24, 24, 0, 0)]


def test_renamed_images_hit_and_a_changed_one_misses(tmp_path, images):
    encoder, digests = FakeEncoder(), DigestCache()
    run_pass(images, [job(tmp_path, encoder)], digests)
    moved = []
    for image in images:
        path = Path(image.path).rename(Path(image.path).with_name("renamed_" + image.image_id))
        moved.append(ImageFile(image.image_id, str(path)))
    assert counts(run_pass(moved, [job(tmp_path, encoder)], digests)) == [(24, 24, 0, 0)]
    Path(moved[3].path).write_bytes(Path(moved[4].path).read_bytes()[:-1] + b"x")
    report = run_pass(moved, [job(tmp_path, encoder)], digests)
    assert report.tallies[0].n_written + report.tallies[0].n_failed == 1


def test_other_weights_go_to_another_store_and_leave_the_first_alone(tmp_path, images):
    old, new = FakeEncoder(weights="0"), FakeEncoder(weights="1")
    run_pass(images, [job(tmp_path, old)], DigestCache())
    folder = Path(open_store(tmp_path, old).folder)
    before = sorted(p for p in folder.rglob("*") if p.is_file())
    stamps = [p.stat().st_mtime_ns for p in before]
    assert counts(run_pass(images, [job(tmp_path, new)], DigestCache())) == [(24, 0, 24, 0)]
    assert [p.stat().st_mtime_ns for p in before] == stamps
    assert len(open_store(tmp_path, new)) == 24


def test_several_encoders_share_one_reading_of_each_image(tmp_path, images, monkeypatch):
    decoded = []
    decode = flow.decode_image
    monkeypatch.setattr(flow, "decode_image", lambda *given: (decoded.append(1), decode(*given))[1])
    encoders = [FakeEncoder(dim=8), FakeEncoder(dim=5, name="other")]
    report = run_pass(images, [job(tmp_path, e) for e in encoders], DigestCache())
    assert counts(report) == [(24, 0, 24, 0)] * 2
    assert len(decoded) == 24


def test_an_encoder_that_is_up_to_date_is_left_alone_beside_one_that_is_not(tmp_path, images):
    done, new = FakeEncoder(dim=8), FakeEncoder(dim=5, name="other")
    run_pass(images, [job(tmp_path, done)], DigestCache())
    done.n_encoded = 0
    report = run_pass(images, [job(tmp_path, e) for e in (done, new)], DigestCache())
    assert counts(report) == [(24, 24, 0, 0), (24, 0, 24, 0)]
    assert done.n_encoded == 0


def test_equal_bytes_are_encoded_once_and_counted_once(tmp_path, images):
    encoder = FakeEncoder()
    double = [*images, ImageFile("copy", images[0].path)]
    report = run_pass(double, [job(tmp_path, encoder, batch_size=1)], DigestCache())
    assert counts(report) == [(25, 1, 24, 0)]
    assert encoder.n_encoded == 24


def test_each_bad_image_costs_itself_and_says_why(tmp_path, images):
    Path(images[2].path).write_bytes(Path(images[2].path).read_bytes()[:60])
    Path(images[5].path).unlink()
    Path(images[6].path).write_bytes(b"")
    images[7] = ImageFile(images[7].image_id, images[7].path, expected="0" * 64)
    encoder = FakeEncoder()
    report = run_pass(images, [job(tmp_path, encoder)], DigestCache())
    assert counts(report) == [(24, 0, 20, 4)]
    failures = dict(report.tallies[0].failures)
    assert "cannot be decoded" in failures[images[2].image_id]
    assert failures[images[5].image_id] == "no such file or directory"
    assert "empty file" in failures[images[6].image_id]
    assert failures[images[7].image_id] == "its bytes are not those of the manifest's sha256"


def test_a_failure_is_remembered_and_tried_again_only_when_asked(tmp_path, images):
    data = Path(images[2].path).read_bytes()
    Path(images[2].path).write_bytes(data[:60])
    encoder = FakeEncoder()
    digests = DigestCache()
    run_pass(images, [job(tmp_path, encoder)], digests)
    encoder.n_encoded = 0
    report = run_pass(images, [job(tmp_path, encoder)], digests)
    assert counts(report) == [(24, 23, 0, 1)]
    assert "cannot be decoded" in report.tallies[0].failures[0][1]
    again = run_pass(images, [job(tmp_path, encoder, retry_failed=True)], digests)
    assert counts(again) == [(24, 23, 0, 1)]
    Path(images[2].path).write_bytes(data)
    assert counts(run_pass(images, [job(tmp_path, encoder)], digests)) == [(24, 23, 1, 0)]


def test_a_row_that_is_not_finite_costs_its_image_not_its_batch(tmp_path, images):
    def spoil(rows):
        if spoiled:
            rows = rows.copy()
            rows[1] = np.nan
        spoiled.clear()
        return rows

    spoiled = [True]
    report = run_pass(images, [job(tmp_path, FakeEncoder(spoil=spoil))], DigestCache())
    assert counts(report) == [(24, 0, 23, 1)]
    assert report.tallies[0].failures == ((images[1].image_id, lane.NOT_FINITE),)


def test_fail_fast_stops_at_the_first_bad_image_and_keeps_what_was_encoded(tmp_path, images):
    Path(images[9].path).write_bytes(b"no")
    encoder = FakeEncoder()
    with pytest.raises(ImageReadError, match=f"{images[9].image_id}.*not an image"):
        run_pass(images, [job(tmp_path, encoder)], DigestCache(), fail_fast=True)
    assert len(open_store(tmp_path, encoder)) == 8


def test_an_interrupted_pass_keeps_what_was_encoded_and_the_next_one_goes_on(tmp_path, images):
    def interrupt(progress):
        if progress.n_done == 10:
            raise KeyboardInterrupt

    encoder = FakeEncoder()
    with pytest.raises(KeyboardInterrupt):
        run_pass(images, [job(tmp_path, encoder)], DigestCache(), on_progress=interrupt)
    held = len(open_store(tmp_path, encoder))
    assert held == 8  # two batches of four
    report = run_pass(images, [job(tmp_path, encoder)], DigestCache())
    assert counts(report) == [(24, 8, 16, 0)]


def test_an_encoder_that_cannot_be_loaded_ends_the_pass_with_its_reason(tmp_path, images):
    encoder = FakeEncoder()

    def load():
        raise EncoderWeightsError("no weights here")

    broken = Job(encoder.spec, open_store(tmp_path, encoder), load)
    start = time.monotonic()
    with pytest.raises(EncoderWeightsError, match="no weights here"):
        run_pass(images, [broken], DigestCache())
    assert time.monotonic() - start < 10


def test_the_encoder_is_loaded_on_the_calling_thread(tmp_path, images):
    encoder, threads = FakeEncoder(), []

    def load():
        threads.append(threading.current_thread())
        return encoder

    run_pass(images, [Job(encoder.spec, open_store(tmp_path, encoder), load)], DigestCache())
    assert threads == [threading.main_thread()]


def test_an_encoder_that_raises_ends_the_pass_and_keeps_the_batches_before(tmp_path, images):
    def spoil(rows):
        batches.append(1)
        if len(batches) >= 4:
            raise RuntimeError("the GPU fell off the bus")
        return rows

    batches: list[int] = []
    encoder = FakeEncoder(spoil=spoil)
    with pytest.raises(EncoderError, match="'fake' failed: .*fell off the bus"):
        run_pass(images, [job(tmp_path, encoder, batch_size=3)], DigestCache())
    assert len(open_store(tmp_path, encoder)) == 9


def test_a_refused_write_ends_the_pass(tmp_path, images, monkeypatch):
    monkeypatch.setattr(lane, "COMMIT_ROWS", 4)
    made = job(tmp_path, FakeEncoder(), batch_size=4)
    append = made.store.append

    def refuse(*arguments, **settings):
        if len(made.store) >= 8:
            raise StoreWriteError("disk full")
        append(*arguments, **settings)

    monkeypatch.setattr(made.store, "append", refuse)
    with pytest.raises(StoreWriteError, match="disk full"):
        run_pass(images, [made], DigestCache())
    assert len(made.store) == 8


def test_progress_counts_what_needs_work_and_names_the_slowest_stage(tmp_path, images):
    seen = []
    run_pass(images, [job(tmp_path, FakeEncoder())], DigestCache(), on_progress=seen.append)
    assert [state.n_done for state in seen] == list(range(1, 25))
    assert {state.n_total for state in seen} == {24}
    assert seen[-1].slowest in {"read", "decode", "preprocess", "encode", "write"}


def test_a_stage_on_several_threads_counts_its_share():
    seconds = {"read": 1.0, "decode": 6.0, "preprocess": 1.0, "encode": 4.0, "write": 0.0}
    assert slowest_stage(seconds, workers=1) == "decode"
    assert slowest_stage(seconds, workers=2) == "encode"


def test_time_is_kept_with_the_rows(tmp_path, images):
    encoder = FakeEncoder()
    run_pass(images, [job(tmp_path, encoder)], DigestCache())
    (record,) = open_store(tmp_path, encoder).records
    assert set(record.context["seconds"]) == {"read", "decode", "preprocess", "encode", "write"}


def test_rows_are_committed_in_time_even_if_slowly(tmp_path, images, monkeypatch):
    monkeypatch.setattr(lane, "COMMIT_SECONDS", 0.0)
    encoder = FakeEncoder()
    run_pass(images, [job(tmp_path, encoder, batch_size=4)], DigestCache())
    assert len(open_store(tmp_path, encoder).records) > 3


def test_a_system_that_refuses_priorities_costs_no_thread(tmp_path, images, monkeypatch):
    def refuse(*_):
        raise PermissionError("refused")

    monkeypatch.setattr("os.setpriority", refuse)
    flow._give_way()
    encoder = FakeEncoder()
    assert run_pass(images, [job(tmp_path, encoder)], DigestCache()).tallies[0].n_written == 24
