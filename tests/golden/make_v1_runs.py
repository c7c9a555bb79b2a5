"""Write `store_v1_runs.zip`, a store of version 0.1 with a run of every kind, and its JSON.

    git worktree add ../embedcache-0.1 e7358c1
    PYTHONPATH=../embedcache-0.1:../embedcache-0.1/cli OMP_NUM_THREADS=1 \
        python tests/golden/make_v1_runs.py

Only the code of version 0.1 can do this, and nothing needs it again: the script is kept to say how
the store was made. Ids count up and clocks move by a fixed step, so that the same libraries write
the same bytes again.
"""

# ruff: noqa: I001 - the sorter cannot find the modules of version 0.1
from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from golden_files import (
    HERE,
    FakeTexts,
    answers,
    image_rows,
    pack,
    records,
    write_expected,
    write_project,
)

import embedcache
import embedcache.finetune.train  # so that its clock can be replaced
from embedcache.digests import DigestCache
from embedcache.encoders import registry
from embedcache.extract.flow import run_pass
from embedcache.extract.lane import Job
from embedcache.pipeline import state
from embedcache.pipeline.encode import put_in_order
from embedcache.pipeline.probing import ProbeOptions
from embedcache.pipeline.project import Project
from embedcache.probe import ProbeSettings
from embedcache.probes.zero_shot import zero_shot
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import FakeEncoder

# Always the same: a store remembers where its manifest was.
FOLDER = Path(tempfile.gettempdir(), "project")
N_FOLDS = 3
N_RESAMPLES = 100
NEW_YEAR = datetime(2025, 1, 1, tzinfo=UTC)
QUERIES = {
    "runs_view": (
        "SELECT run_id, kind, regime, encoder, fingerprint, train_cohort, label_column, folds_id, "
        "created, seconds FROM runs ORDER BY run_id"
    ),
    "metrics": (
        "FROM metrics ORDER BY run_id, cohort, role, scoring, level, metric, label NULLS FIRST"
    ),
    "predictions": "FROM predictions ORDER BY run_id, image_id",
    "folds": "FROM folds ORDER BY folds_id, patient_id",
    "failures": "FROM failures ORDER BY encoder, image_id",
    "images": "FROM images",
}


@contextmanager
def counted_clocks() -> Iterator[None]:
    """Let ids count up, the hour move a minute a look, and a stopwatch an eighth of a second."""
    ids, looks, ticks = count(1), count(), count()
    verbs = ("probing", "curves", "zeroshot", "finetuning")
    timed = [*(f"pipeline.{name}" for name in verbs), "finetune.train"]
    dated = ["workspace", *(f"pipeline.{name}" for name in ("state", "pixels", *verbs))]
    stopwatch = SimpleNamespace(perf_counter=lambda: next(ticks) / 8)

    def next_id() -> str:
        return f"20250101T000000{next(ids):06d}-000000000000"

    def now() -> str:
        return (NEW_YEAR + timedelta(minutes=next(looks))).isoformat()

    stand_ins = {
        "store.embedding_store.new_id": next_id,
        "pipeline.state.new_id": next_id,
        **{f"{name}.utc_now": now for name in dated},
        **{f"{name}.time": stopwatch for name in timed},
        "finetune.train.peak_memory_bytes": lambda device: 123_456_789,
        "finetune.train.device_name": lambda device: "a CPU",
    }
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch(f"embedcache.{name}", stand_in))
        yield


def extract(project: Project) -> None:
    """Encode everything with the fake encoder, in three commits, the first two compacted."""
    project.workspace.create_store()
    encoder, digests = FakeEncoder(dim=8), DigestCache()
    document = {
        "name": encoder.spec.name,
        "fingerprint": encoder.fingerprint,
        "identity": encoder.identity,
        "spec": encoder.spec.document(),
        "versions": {"embedcache-fm": embedcache.__version__},
        "created": NEW_YEAR.isoformat(),
    }
    folder = state.encoder_folder(project.workspace, encoder.spec.name, encoder.fingerprint)
    store = EmbeddingStore.open_or_create(folder, document)
    images = state.load_images(project.workspace)
    context = {"manifest": state.save_snapshot(project.workspace, images)}
    with mock.patch("time.perf_counter", return_value=0.0):
        for first, last in ((0, 20), (20, 32), (32, None)):
            job = Job(encoder.spec, store, lambda: encoder)
            run_pass(images.files[first:last], [job], digests, workers=1)
            if last == 32:
                put_in_order(store, images, context)


@contextmanager
def fake_texts(project: Project) -> Iterator[None]:
    """Give 'fake' a text half."""
    rows = project.embeddings("fake")
    texts = FakeTexts(rows.X, rows.label)

    def centred(X: Any, classes: Any) -> Any:
        return zero_shot(X - texts.middle, classes)

    with (
        mock.patch("embedcache.pipeline.zeroshot.identify_store"),
        mock.patch.object(registry, "load_text", return_value=texts),
        mock.patch("embedcache.pipeline.zeroshot.zero_shot", centred),
    ):
        yield


def make_runs(project: Project) -> dict[str, str]:
    """Make a run of every kind; return what each one is, by its id."""
    named: dict[str, str] = {}

    def note(name: str, outcomes: Any) -> None:
        for outcome in outcomes:
            assert not outcome.was_cached, f"{name}: {outcome.run.run_id} was there"
            named[outcome.run.run_id] = name

    def options(**settings: Any) -> ProbeOptions:
        return ProbeOptions(settings=ProbeSettings(**settings), n_resamples=N_RESAMPLES)

    def probe(name: str, settings: dict[str, Any] | None = None, **cohorts: Any) -> None:
        probe_options = options(**(settings or {}))
        note(name, project.probe("fake", probe_options=probe_options, folds=N_FOLDS, **cohorts))

    probe("probe")
    probe("probe, external by folds", {"external": "folds"})
    probe("probe, knn", {"probe": "knn"})
    probe("probe, protocol fetalclip", {"protocol": "fetalclip"})
    probe("probe, task regression", label="ga_weeks", task="regression")
    probe("probe, task multilabel", label="findings", task="multilabel")
    report = project.sweep("fake", probe_options=options(), folds=N_FOLDS)
    assert [run.was_cached for run in report.runs] == [True]
    names = ("majority", "metadata", "shuffled labels")
    for name, outcome in zip(names, report.controls, strict=True):
        note(f"control, {name}", [outcome])
    note("curve", project.learning_curves("fake", n_draws=3, folds=N_FOLDS))
    with fake_texts(project):
        prompts = str(project.workspace.data_root / "prompts.yaml")
        note("zeroshot", project.zeroshot("fake", prompts=prompts, n_resamples=N_RESAMPLES))
    for regime, save in (("finetune", True), ("head-only", False)):
        tuned = project.finetune(
            "tiniest-vit",
            encoder_file=HERE / "tiniest_encoder.py",
            changes={"epochs": 1, "batch_size": 4, "lr": 1e-3},
            regime=regime,
            save=save,
            device="cpu",
            n_resamples=N_RESAMPLES,
            cohort_options={"folds": N_FOLDS},
        )
        note(f"finetune, {regime}{', saved' if save else ''}", tuned)
    return named


def expected_of(project: Project, named: dict[str, str]) -> dict[str, Any]:
    """Return all of `store_v1_runs.json`."""
    documents = records(project.workspace.data_root)
    assert len(documents) == len(named)
    return {
        "written_by": {"version": embedcache.__version__, "commit": "e7358c1"},
        "queries": QUERIES,
        "runs": [{"name": named[one["run_id"]], "record": one} for one in documents],
        **answers(project, QUERIES),
        "rows": image_rows(project, state.find_store(project.workspace, "fake")),
    }


def main() -> None:
    """Write both files."""
    for name in [name for name in os.environ if name.startswith("EMBEDCACHE_")]:
        del os.environ[name]
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    torch.set_num_threads(1)
    write_project(FOLDER)
    with counted_clocks():
        project = embedcache.open(FOLDER)
        extract(project)
        named = make_runs(project)
    write_expected(HERE / "store_v1_runs.json", expected_of(project, named))
    pack(FOLDER, HERE / "store_v1_runs.zip")
    shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main()
