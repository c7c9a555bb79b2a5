"""A run is made once, whoever asks, and leaves nothing where it is not made."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from made_answers import made_predictions
from made_runs import made_request

from embedcache.errors import RunError, StoreReadError, StoreWriteError
from embedcache.files.backend import Location, on_disk
from embedcache.runs.files import RunFiles
from embedcache.runs.once import Computed, once
from embedcache.scoring.estimates import Estimate
from embedcache.testing import MemoryBackend
from embedcache.workspace import Workspace


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "data_manifest.csv", tmp_path, on_disk(tmp_path / ".embedcache"))


@pytest.fixture
def runs(workspace) -> RunFiles:
    return RunFiles(workspace)


class Compute:
    """Makes a run and counts how often it does."""

    def __init__(self, **settings):
        self.n_calls = 0
        self.settings = settings

    def __call__(self) -> Computed:
        self.n_calls += 1
        settings = {"results": {"C": [0.1], "final_C": 0.5}, **self.settings}
        return Computed([made_predictions(2.0)], [made_predictions(1.0, cohort="away")], **settings)


def files_of(workspace) -> list[str]:
    return [entry.name for entry in workspace.store.list(deep=True, hidden=True)]


def test_the_second_call_finds_the_run_with_the_same_answers(runs, workspace):
    compute = Compute(notes=["a class is rare"])
    first = once(runs, made_request(), compute, n_skipped=2, notes=["of the cohort"])
    second = once(RunFiles(workspace), made_request(), compute)
    assert compute.n_calls == 1
    assert (first.was_cached, second.was_cached) == (False, True)
    assert second.run_id == first.run_id == made_request().run_id
    assert second.folder == first.folder
    assert second.record == first.record
    assert str(second.estimates) == str(first.estimates)  # NaN is NaN in words
    [ours], [stored] = first.answers, second.answers
    assert np.array_equal(stored.probability, ours.probability)
    assert (stored.image_id, stored.label) == (ours.image_id, ours.label)
    assert second.record.final_settings == {"C": 0.5}
    assert second.record.notes == (
        "of the cohort",
        "a class is rare",
        "2 images left out: they could not be read",
    )
    assert second.n_skipped == 2
    [away] = runs.fold_answers(first.run_id)
    assert np.array_equal(away.probability, made_predictions(1.0, cohort="away").probability)


def test_scores_that_a_method_brings_are_those_of_the_run(runs):
    score = Estimate("home", "in-domain", "all", "image", "macro_f1", "", 0.5, 0.25, 1.0, 4, 9)
    outcome = once(runs, made_request(), Compute(estimates=[score]))
    assert outcome.estimates == (score,)
    assert once(runs, made_request(), Compute()).estimates == (score,)


def test_a_stored_run_without_the_score_it_is_judged_by_is_an_error_of_one_line(runs):
    score = Estimate("home", "in-domain", "all", "image", "x", "", 0.5, 0.25, 1.0, 4, 9)
    once(runs, made_request(), Compute(estimates=[score]))
    with pytest.raises(StoreReadError, match="is no run of that name; remove it"):
        once(runs, made_request(), Compute())


def test_another_request_is_another_run(runs):
    compute = Compute()
    names = {
        once(runs, request, compute).run_id
        for request in (made_request(), made_request("f"), made_request(train="0" * 64))
    }
    assert compute.n_calls == len(names) == 3
    assert set(runs.ids()) == names
    again = once(runs, made_request(manifest="1" * 16), compute)  # other images beside the same
    assert again.was_cached


@pytest.mark.parametrize(
    "error", [RunError("no fold can be fitted"), KeyboardInterrupt("the user")]
)
def test_a_run_that_cannot_be_computed_leaves_nothing(runs, workspace, error):
    def compute():
        raise error

    with pytest.raises(type(error), match=str(error)):
        once(runs, made_request(), compute)
    assert runs.ids() == runs.folders() == []
    assert [name for name in files_of(workspace) if "/.lock-" not in name] == []
    assert not once(runs, made_request(), Compute()).was_cached


def test_two_threads_that_want_one_run_make_it_once(workspace):
    begun, waiting = threading.Event(), threading.Event()
    compute = Compute()

    def slow() -> Computed:
        begun.set()
        assert waiting.wait(60)
        return compute()

    outcomes = {}

    def ask(name, function, on_wait=lambda: None):
        runs = RunFiles(workspace)
        outcomes[name] = once(runs, made_request(), function, on_wait=on_wait)

    first = threading.Thread(target=ask, args=("first", slow))
    first.start()
    assert begun.wait(60)
    second = threading.Thread(target=ask, args=("second", compute, waiting.set))
    second.start()
    for thread in (first, second):
        thread.join(60)
    assert compute.n_calls == 1
    assert (outcomes["first"].was_cached, outcomes["second"].was_cached) == (False, True)
    assert str(outcomes["first"].estimates) == str(outcomes["second"].estimates)


class Recorder(MemoryBackend):
    """A storage that notes what is done to it, and may refuse a name."""

    def __init__(self, refused: str = "") -> None:
        super().__init__()
        self.calls: list[tuple[str, str]] = []
        self.refused = refused

    def _note(self, call: str, name: str) -> None:
        plain = name.rpartition("/")[2].split(".")
        self.calls.append((call, ".".join(plain[:1] + plain[-1:])))
        if self.refused and self.refused in name:
            raise StoreWriteError(f"{name}: No space left on device")

    def put(self, name: str, data: bytes) -> None:
        self._note("put", name)
        super().put(name, data)

    def replace(self, name: str, data: bytes) -> None:
        self._note("replace", name)
        super().replace(name, data)

    def delete(self, name: str) -> None:
        self._note("delete", name)
        super().delete(name)


def test_the_record_is_written_last(tmp_path):
    backend = Recorder()
    workspace = Workspace(tmp_path / "data_manifest.csv", tmp_path, Location(backend, ""))
    workspace.create_store()
    backend.calls.clear()
    once(RunFiles(workspace), made_request(), Compute())
    assert backend.calls == [
        ("replace", ".writing"),
        ("put", "predictions.parquet"),
        ("put", "metrics.parquet"),
        ("put", "fold_predictions.parquet"),
        ("put", "run.json"),
        ("delete", ".writing"),
    ]


@pytest.mark.parametrize("refused", ["predictions.", "metrics.", "run.json"])
def test_a_storage_that_refuses_leaves_no_run_and_the_same_call_makes_it(tmp_path, refused):
    backend = Recorder(refused)
    workspace = Workspace(tmp_path / "data_manifest.csv", tmp_path, Location(backend, ""))
    runs = RunFiles(workspace)
    with pytest.raises(StoreWriteError, match="No space left on device"):
        once(runs, made_request(), Compute())
    assert runs.ids() == runs.folders() == []
    assert runs.is_marked(made_request().run_id)
    backend.refused = ""
    assert not once(runs, made_request(), Compute()).was_cached
    assert not runs.is_marked(made_request().run_id)
    assert runs.ids() == [made_request().run_id]
