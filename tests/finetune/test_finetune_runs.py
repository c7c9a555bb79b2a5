"""Runs of fine-tuning beside those of probes, and what cannot be done."""

from __future__ import annotations

import shutil
import sys
from contextlib import ExitStack

import numpy as np
import pytest
from tiny_trainings import (
    FILE,
    QUICK,
    SETTINGS,
    copied,
    make_tuned,
    pictures_of,
    record_of,
    tiny_encoders_on_one_thread,
)

import embedcache
from embedcache.data.question import Question
from embedcache.errors import (
    DeviceError,
    EncoderError,
    LeakageError,
    MissingEmbeddingsError,
    MissingExtraError,
    RunError,
)
from embedcache.files.locks import locked
from embedcache.finetune.recipe import read_recipe
from embedcache.finetune.train import train_fold
from embedcache.runs.files import RunFiles
from embedcache.testing import write_cohort
from embedcache.verbs.finetune import finetune
from embedcache.verbs.finetune_options import Callbacks, FinetuneOptions
from embedcache.verbs.session import Session


@pytest.fixture(autouse=True)
def _tiny_encoders():
    with tiny_encoders_on_one_thread():
        yield


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    return make_tuned(tmp_path_factory.mktemp("tuned"))


def test_predictions_are_of_the_very_rows_and_folds_of_the_probe(tuned):
    project = embedcache.open(tuned)
    tables = {
        kind: RunFiles(project.workspace).table(record_of(project, kind).run_id, "predictions")
        for kind in ("probe", "finetune")
    }
    for column in ("image_id", "patient_id", "cohort", "role", "fold", "label"):
        assert tables["probe"][column].equals(tables["finetune"][column]), column
    p = tables["finetune"]["p"].combine_chunks()
    assert p.keys.to_pylist()[:3] == tables["probe"]["p"].combine_chunks().keys.to_pylist()[:3]
    assert np.allclose(p.items.to_numpy().reshape(-1, 3).sum(axis=1), 1)


def test_the_record_says_what_was_done(tuned):
    project = embedcache.open(tuned)
    record, probe = record_of(project, "finetune"), record_of(project, "probe")
    assert record.run_id.startswith("finetune-tiny-vit-")
    assert record.fingerprint == probe.fingerprint
    assert record.request.data.folds_id == probe.request.data.folds_id
    assert record.request.question == probe.request.question
    assert record.method.regime == record.regime == record.label == "finetune"
    assert record.method.recipe["epochs"] == 2
    assert record.method.recipe["precision"] == "fp32"  # what 'auto' was here
    assert record.method.external_by == "folds"
    assert len(record.training_costs) == len(record.best_epochs) == 5
    assert [len(fold) for fold in record.results["epochs"]] == [2] * 5
    assert record.training_costs[0].seconds > 0
    assert record.training_costs[0].peak_memory_bytes > 0
    assert {"torch", "timm", "lightning-fabric", "torchvision"} <= record.request.versions.keys()


def test_one_select_lays_it_beside_the_probe(tuned):
    table = embedcache.open(tuned).sql(
        "SELECT regime, cohort, value, n_patients FROM metrics JOIN runs USING (run_id) "
        "WHERE metric = 'macro_f1' AND level = 'image' AND scoring = 'all' ORDER BY ALL"
    )
    assert [(row["regime"], row["cohort"]) for row in table.to_pylist()] == [
        ("finetune", "abroad"),
        ("finetune", "home"),
        ("probe", "abroad"),
        ("probe", "home"),
    ]
    assert set(table["n_patients"].to_pylist()) == {10, 12}


def test_compare_pairs_them_by_patient(tuned):
    report = embedcache.open(tuned).compare(n_resamples=200)
    assert set(report.runs) == {"tiny-vit (finetune)", "tiny-vit (logistic)"}
    for cohort in report.cohorts:
        (pair,) = cohort.comparison.pairs
        assert pair.low <= pair.difference <= pair.high


def test_a_run_that_was_made_before_is_found_again(tuned, monkeypatch):
    def never(*_: object, **__: object) -> None:
        raise AssertionError

    monkeypatch.setattr("embedcache.finetune.train.train_fold", never)
    project = embedcache.open(tuned)
    before = record_of(project, "finetune")
    for options in ({}, {"save": True}):
        [again] = project.finetune("tiny-vit", changes=QUICK, **options, **SETTINGS)
        assert again.was_cached
        assert again.record == before
    assert not list(project.workspace.training.glob("[!.]*"))


def test_another_recipe_or_regime_is_another_run(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    [other] = project.finetune("tiny-vit", changes={**QUICK, "lr": 2e-3}, **SETTINGS)
    [head] = project.finetune("tiny-vit", changes=QUICK, regime="head-only", **SETTINGS)
    assert not other.was_cached
    before = record_of(copied(tuned, tmp_path / "before"), "finetune")
    assert len({other.run_id, head.run_id, before.run_id}) == 3
    report = project.compare(n_resamples=200)
    assert "tiny-vit (head-only)" in report.runs


def test_repeats_are_trainings_with_other_seeds_on_given_folds_too(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    patients = sorted(set(project.images()["patient_id"].to_pylist()))
    lines = [f"{name},{number % 2}" for number, name in enumerate(patients)]
    (tmp_path / "folds.csv").write_text("\n".join(["patient_id,fold", *lines]))
    asked = {"changes": {**QUICK, "epochs": 1}, "regime": "head-only", **SETTINGS}
    report = project.finetune("tiny-vit", repeats=2, folds=tmp_path / "folds.csv", **asked)
    assert [run.record.seed for run in report] == [0, 1]
    assert len({run.record.request.data.folds_id for run in report}) == 1
    first, second = (run.answers[0].probability for run in report)
    assert (first != second).any()
    [again] = project.finetune("tiny-vit", seed=1, folds=tmp_path / "folds.csv", **asked)
    assert again.was_cached
    compared = project.compare(n_resamples=100)
    assert compared.runs["tiny-vit"] == tuple(run.run_id for run in report)
    with pytest.raises(RunError, match="repeats"):
        project.finetune("tiny-vit", repeats=0, **asked)


def test_a_head_that_starts_at_the_probe_needs_cached_embeddings(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    with pytest.raises(MissingEmbeddingsError, match="run `embedcache extract --model tiny-cnn"):
        project.finetune("tiny-cnn", changes=QUICK, regime="lp-ft", **SETTINGS)
    [outcome] = project.finetune("tiny-vit", changes=QUICK, regime="lp-ft", seed=1, **SETTINGS)
    assert outcome.record.regime == "lp-ft"
    assert project.probe("tiny-vit", seed=1, n_resamples=100)[0].was_cached  # the head's probe


def test_pictures_are_decoded_once_for_all_trainings(tuned, tmp_path, monkeypatch):
    project = copied(tuned, tmp_path)
    folder = pictures_of(project)
    monkeypatch.setattr("embedcache.extract.flow.decode_image", None)
    [outcome] = project.finetune("tiny-cnn", changes={**QUICK, "epochs": 1}, **SETTINGS)
    assert not outcome.was_cached
    assert pictures_of(project) == folder


def test_an_image_that_cannot_be_read_is_left_out_and_said(tmp_path):
    write_cohort(tmp_path, size=16)
    broken = sorted((tmp_path / "images").glob("*.png"))[0]
    broken.write_bytes(broken.read_bytes()[:100])
    project = embedcache.open(tmp_path)
    messages = []
    [outcome] = project.finetune(
        "tiny-vit",
        changes={**QUICK, "epochs": 1},
        folds=2,
        callbacks=Callbacks(on_message=messages.append),
        **SETTINGS,
    )
    assert outcome.n_skipped == 1
    assert any("1 images left out" in note for note in outcome.record.notes)
    [answers] = outcome.answers
    assert broken.stem not in answers.image_id
    assert len(answers.image_id) == 71


def test_errors_name_what_is_wrong_before_anything_is_decoded(tuned, monkeypatch):
    project = embedcache.open(tuned)
    monkeypatch.setattr("embedcache.verbs.finetune.hold_pixels", None)

    def fails(kind: type[Exception], match: str, model: str = "tiny-vit", **options: object):
        with pytest.raises(kind, match=match):
            project.finetune(model, **{"encoder_file": FILE, **options})

    fails(RunError, "no regime 'lorra'; it may be", regime="lorra")
    fails(DeviceError, "no device 'gpu'", device="gpu")
    fails(RunError, "did you mean 'epochs'", changes={"epoch": 3})
    fails(RunError, "the weights here are not those of 'tiny-vit@0000'", model="tiny-vit@0000")
    question, options = Question(task="regression"), FinetuneOptions(read_recipe())
    with pytest.raises(RunError, match="fine-tuning is for one class an image, not regression"):
        finetune(Session(project.workspace), ["tiny-vit"], question, options)


def test_an_encoder_without_weights_and_a_patient_in_two_cohorts_are_refused(tmp_path):
    write_cohort(tmp_path, cohorts=("home", "abroad"), size=16)
    project = embedcache.open(tmp_path)
    with pytest.raises(EncoderError, match="'pixels' is no network of torch"):
        project.finetune("pixels", changes=QUICK)
    manifest = tmp_path / "data_manifest.csv"
    manifest.write_text(manifest.read_text().replace(",abroad-000,", ",home-000,"))
    with pytest.raises(LeakageError, match="1 patients are in the training cohort and in"):
        project.finetune("tiny-vit", changes=QUICK, **SETTINGS)


def test_a_cohort_without_a_readable_image_is_refused(tmp_path):
    write_cohort(tmp_path, cohorts=("home", "abroad"), size=16)
    for picture in tmp_path.glob("images/**/*abroad*"):
        picture.unlink() if picture.is_file() else None
    with pytest.raises(MissingEmbeddingsError, match="no image of cohort 'abroad' can be read"):
        embedcache.open(tmp_path).finetune("tiny-vit", changes=QUICK, **SETTINGS)


def test_images_must_be_here(tuned, tmp_path):
    shutil.copytree(tuned / ".embedcache", tmp_path / ".embedcache")
    shutil.rmtree(tmp_path / ".embedcache" / "pixels")
    with pytest.raises(MissingEmbeddingsError, match="fine-tuning reads the images themselves"):
        embedcache.open(tmp_path).finetune("tiny-vit", changes=QUICK, **SETTINGS)


def test_an_extra_that_is_not_installed_is_named(tuned, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    project = embedcache.open(tuned)
    with pytest.raises(MissingExtraError, match="the extra .finetune.; run `pip install peft`"):
        project.finetune("tiny-vit", changes=QUICK, regime="lora", **SETTINGS)


def test_a_training_that_stops_keeps_the_folds_before(tuned, tmp_path, monkeypatch):
    project = copied(tuned, tmp_path)
    trained: list[int] = []

    def counted(fabric, job, *callbacks):
        if len(trained) == 2:
            raise RunError("fold 2 stopped")
        trained.append(job.fold)
        return train_fold(fabric, job, *callbacks)

    changes = {**QUICK, "epochs": 1}
    monkeypatch.setattr("embedcache.finetune.train.train_fold", counted)
    with pytest.raises(RunError, match="fold 2 stopped"):
        project.finetune("tiny-vit", changes=changes, **SETTINGS)
    assert trained == [0, 1]
    monkeypatch.setattr("embedcache.finetune.train.train_fold", train_fold)
    trained_now: set[int] = set()
    [outcome] = project.finetune(
        "tiny-vit",
        changes=changes,
        callbacks=Callbacks(on_epoch=lambda epoch: trained_now.add(epoch.fold)),
        **SETTINGS,
    )
    assert trained_now == {2, 3, 4}
    assert len(outcome.record.training_costs) == 5


def test_who_waits_for_another_says_so_and_takes_its_run(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    run_id = record_of(project, "finetune").run_id
    run = project.workspace.runs / run_id
    shutil.move(run, tmp_path / "published later")
    other = ExitStack()
    other.enter_context(locked(project.workspace.runs / f".lock-{run_id}"))
    messages: list[str] = []

    def publish(message: str) -> None:
        messages.append(message)
        shutil.move(tmp_path / "published later", run)
        other.close()

    callbacks = Callbacks(on_message=publish)
    [outcome] = project.finetune("tiny-vit", changes=QUICK, callbacks=callbacks, **SETTINGS)
    assert messages == [f"another process is training {run_id}; waiting for it to end"]
    assert outcome.was_cached
