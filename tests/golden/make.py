"""Write the goldens; nothing else does.

    python tests/golden/make.py           help.txt, and the store of this format version if missing
    python tests/golden/make.py --again   the store of this format version too

Stores of earlier format versions cannot be made any more and are never touched. A store is made
with ids that count up and clocks that stand still or move by a fixed step, so that only other
versions of Zarr, Arrow and Pillow, and of torch where it trains, change its bytes.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import click
import torch
from embedcache_cli.main import cli
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
from embedcache.encoders import registry
from embedcache.extract.flow import run_pass
from embedcache.extract.lane import Job
from embedcache.extract.order import put_in_order
from embedcache.files.digests import DigestCache
from embedcache.probes.zero_shot import zero_shot
from embedcache.project import Project
from embedcache.testing import FakeEncoder
from embedcache.verbs.session import Session
from embedcache.workspace import FORMAT_VERSION

HELP = HERE / "help.txt"
# Always the same: a store remembers where its manifest was.
FOLDER = Path(tempfile.gettempdir(), "project")
NEW_YEAR = datetime(2025, 1, 1, tzinfo=UTC)
QUERIES = {
    "runs_view": "SELECT * EXCLUDE (question, method, settings, results) FROM runs ORDER BY run_id",
    "metrics": (
        "FROM metrics ORDER BY run_id, cohort, role, scoring, level, metric, label NULLS FIRST"
    ),
    "predictions": "FROM predictions ORDER BY run_id, image_id",
    "fold_predictions": "FROM fold_predictions ORDER BY run_id, fold, image_id",
    "folds": "FROM folds ORDER BY folds_id, patient_id",
    "failures": "FROM failures ORDER BY encoder, image_id",
    "images": "FROM images",
}


def help_text() -> str:
    """Return the `--help` text of every command, 100 columns wide."""
    parts = [f"$ {name} --help\n{text}" for name, text in _helps(cli, "embedcache", None)]
    return "\n\n".join(parts) + "\n"


def _helps(
    command: click.Command, name: str, parent: click.Context | None
) -> Iterator[tuple[str, str]]:
    settings = {"terminal_width": 100, **command.context_settings}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for verb in command.list_commands(context):
            yield from _helps(command.get_command(context, verb), verb, context)


@contextmanager
def counted_clocks() -> Iterator[None]:
    """Let ids count up, the hour move a minute a look, and a stopwatch an eighth of a second."""
    ids, looks, ticks = count(1), count(), count()
    stopwatch = SimpleNamespace(perf_counter=lambda: next(ticks) / 8)

    def next_id() -> str:
        return f"20250101T000000{next(ids):06d}-000000000000"

    def now() -> str:
        return (NEW_YEAR + timedelta(minutes=next(looks))).isoformat()

    stand_ins = {
        "store.commits.new_id": next_id,
        "data.snapshots.new_id": next_id,
        **{
            f"{name}.utc_now": now
            for name in ("workspace", "data.snapshots", "runs.once", "extract.pictures")
        },
        **{f"{name}.time": stopwatch for name in ("runs.once", "finetune.train")},
        "finetune.train.peak_memory_bytes": lambda device: 123_456_789,
        "finetune.train._device_name": lambda device: "a CPU",
    }
    with ExitStack() as stack:
        for name, stand_in in stand_ins.items():
            stack.enter_context(mock.patch(f"embedcache.{name}", stand_in))
        yield


def extract(project: Project) -> None:
    """Encode everything with the fake encoder, in three commits, the first two compacted."""
    project.workspace.create_store()
    session, encoder, digests = Session(project.workspace), FakeEncoder(dim=8), DigestCache()
    document = {
        "name": encoder.spec.name,
        "fingerprint": encoder.fingerprint,
        "identity": encoder.identity,
        "spec": encoder.spec.document(),
        "versions": {"embedcache-fm": embedcache.__version__},
        "created": NEW_YEAR.isoformat(),
    }
    folder = project.workspace.encoder_folder(encoder.spec.name, encoder.fingerprint)
    store = session.create_store(folder, document)
    context = {"manifest": session.snapshot}
    with mock.patch("time.perf_counter", return_value=0.0):
        for first, last in ((0, 20), (20, 32), (32, None)):
            job = Job(encoder.spec, store, lambda: encoder)
            run_pass(session.images.files[first:last], [job], digests, workers=1)
            if last == 32:
                put_in_order(store, session.images, context)


@contextmanager
def fake_texts(project: Project) -> Iterator[None]:
    """Give 'fake' a text half."""
    rows = project.embeddings("fake")
    texts = FakeTexts(rows.X, rows.label)

    def centred(X: Any, classes: Any) -> Any:
        return zero_shot(X - texts.middle, classes)

    with (
        mock.patch("embedcache.verbs.zeroshot.identify_stored"),
        mock.patch.object(registry, "load_text", return_value=texts),
        mock.patch("embedcache.verbs.zeroshot.zero_shot", centred),
    ):
        yield


def make_runs(project: Project) -> dict[str, str]:
    """Make a run of every kind; return what each one is, by its id."""
    named: dict[str, str] = {}

    def note(name: str, outcomes: Any) -> None:
        for outcome in outcomes:
            assert not outcome.was_cached, f"{name}: {outcome.run_id} was there"
            named[outcome.run_id] = name

    few = {"n_resamples": 100}
    report = project.probe("fake", folds=3, controls=True, **few)
    note("probe", report)
    names = ("majority", "metadata", "shuffled labels")
    for name, outcome in zip(names, report.controls, strict=True):
        note(f"control, {name}", [outcome])
    for task, label in (("regression", "ga_weeks"), ("multilabel", "findings")):
        note(f"probe, {task}", project.probe("fake", task=task, label=label, folds=3, **few))
    note("curve", project.learning_curves("fake", n_draws=3, folds=3))
    with fake_texts(project):
        prompts = str(project.workspace.data_root / "prompts.yaml")
        note("zeroshot", project.zeroshot("fake", prompts=prompts, **few))
    tuned = project.finetune(
        "tiniest-vit",
        encoder_file=HERE / "tiniest_encoder.py",
        changes={"epochs": 1, "batch_size": 4, "lr": 1e-3},
        save=True,
        device="cpu",
        folds=3,
        **few,
    )
    note("finetune", tuned)
    return named


def expected_of(project: Project, named: dict[str, str]) -> dict[str, Any]:
    """Return what must be read from the store of this format version."""
    documents = records(project.workspace.data_root)
    assert len(documents) == len(named)
    return {
        "written_by": {"version": embedcache.__version__},
        "queries": QUERIES,
        "runs": [{"name": named[one["run_id"]], "record": one} for one in documents],
        **answers(project, QUERIES),
        "rows": image_rows(project, Session(project.workspace).find_store("fake")),
    }


def make_project(folder: Path) -> tuple[Project, dict[str, Any]]:
    """Write the project of a golden store; return it, and what must be read from it."""
    write_project(folder)
    with counted_clocks():
        project = embedcache.open(folder)
        extract(project)
        named = make_runs(project)
    return project, expected_of(project, named)


def make_store(version: int) -> None:
    """Write `store_v<version>.zip`, and beside it what must be read from it."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    FOLDER.mkdir()
    torch.set_num_threads(1)
    write_expected(HERE / f"store_v{version}.json", make_project(FOLDER)[1])
    pack(FOLDER, HERE / f"store_v{version}.zip")
    shutil.rmtree(FOLDER)


if __name__ == "__main__":
    HELP.write_text(help_text())
    if "--again" in sys.argv[1:] or not (HERE / f"store_v{FORMAT_VERSION}.zip").exists():
        make_store(FORMAT_VERSION)
