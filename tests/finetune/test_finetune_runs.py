"""Fine-tuning as a user meets it: runs beside probes, kept encoders, errors, the command."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import filelock
import numpy as np
import pytest
import tiny_encoders
import torch
from conftest import IN_FOREGROUND, PATIENCE
from embedcache_cli.main import run as run_command

import embedcache
from embedcache.data.question import Question
from embedcache.encoders import registry
from embedcache.encoders.plugins import register_file
from embedcache.errors import (
    DeviceError,
    EncoderError,
    EncoderWeightsError,
    LeakageError,
    MissingEmbeddingsError,
    MissingExtraError,
    RunError,
    StoreCorruptError,
)
from embedcache.files.locks import marked
from embedcache.finetune.recipe import read_recipe
from embedcache.finetune.train import train_fold
from embedcache.runs.files import RunFiles
from embedcache.runs.record import RunRecord
from embedcache.testing import write_cohort
from embedcache.verbs.finetune import Callbacks, FinetuneOptions, finetune
from embedcache.verbs.session import Session
from embedcache.workspace import store_folders

FILE = Path(tiny_encoders.__file__)
QUICK = {"epochs": 2, "batch_size": 16, "lr": 1e-3}
SETTINGS = {"encoder_file": FILE, "n_resamples": 100}


@pytest.fixture(autouse=True)
def _tiny_encoders_on_one_thread():
    register_file(FILE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Two cohorts, probed and fine-tuned, the encoders kept."""
    folder = tmp_path_factory.mktemp("tuned")
    write_cohort(folder, cohorts=("home", "abroad"), size=16)
    register_file(FILE)
    project = embedcache.open(folder)
    project.extract("tiny-vit", encoder_file=FILE)
    project.probe("tiny-vit")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    project.finetune("tiny-vit", changes=QUICK, save=True, **SETTINGS)
    torch.set_num_threads(threads)
    return folder


def copied(tuned: Path, to: Path) -> embedcache.project.Project:
    shutil.copytree(tuned, to, dirs_exist_ok=True)
    return embedcache.open(to)


def record_of(project, kind: str) -> RunRecord:
    """Return the record of the only run of a kind."""
    [record] = [one for one in RunFiles(project.workspace).records() if one.kind == kind]
    return record


def pictures_of(project) -> Path:
    """Return the only folder of pictures at training size."""
    [folder] = store_folders(project.workspace.pixels)
    return Path(folder)


# Beside the probe


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


def test_a_head_that_starts_at_the_probe_needs_cached_embeddings(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    with pytest.raises(MissingEmbeddingsError, match="run `embedcache extract --model tiny-cnn"):
        project.finetune("tiny-cnn", changes=QUICK, regime="lp-ft", **SETTINGS)
    [outcome] = project.finetune("tiny-vit", changes=QUICK, regime="lp-ft", **SETTINGS)
    assert outcome.record.regime == "lp-ft"


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


# Encoders that were kept


@pytest.mark.slow
def test_a_kept_encoder_is_an_encoder(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    run_id = record_of(project, "finetune").run_id
    report = project.extract(f"run:{run_id}")
    assert [tally.encoder for tally in report.tallies] == [f"run:{run_id}:{k}" for k in range(5)]
    assert all(tally.n_written == 132 for tally in report.tallies)
    rows = project.embeddings(f"run:{run_id}:0")
    base = project.embeddings("tiny-vit")
    assert rows.X.shape == base.X.shape
    assert not np.allclose(rows.X, base.X, atol=1e-3)
    assert project.extract("all").tallies[-1].n_cached == 132
    # It is the network that predicted: its embeddings of a tested patient give that prediction.
    assert project.verify().findings == ()


def test_a_kept_file_is_what_its_name_extracts_with(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    run_id = record_of(project, "finetune").run_id
    project.extract(f"run:{run_id}:2")
    document = json.loads((project.workspace.weights / run_id / "encoders.json").read_text())
    name = document["encoders"][2]["file"]
    found = registry.identify_by_name("tiny-vit", digests=embedcache.files.digests.DigestCache())
    module = registry.load(found, device="cpu").module
    from safetensors.torch import load_file

    module.load_state_dict(load_file(project.workspace.weights / run_id / name))
    images = project.images()
    first = tmp_path / images["path"][0].as_py()
    encoder = registry.load(found, device="cpu")
    encoder.module.load_state_dict(module.state_dict())
    expected = encoder.embed([first])[0]
    stored = project.embeddings(f"run:{run_id}:2").X[0]
    assert np.allclose(stored, expected, atol=1e-5)


def test_a_kept_encoder_is_never_asked_about_patients_it_was_trained_on(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    run_id = record_of(project, "finetune").run_id
    name = f"run:{run_id}:1"
    project.extract(name)
    with pytest.raises(LeakageError, match=r"'run:finetune-tiny-vit-\w+:1' was trained on patient"):
        project.probe(name)
    with pytest.raises(LeakageError, match="was trained on patient"):
        project.probe(name, train_cohort="abroad", external=("home",), folds=3)
    [outcome] = project.probe(name, train_cohort="abroad", external=(), folds=3)
    assert outcome.encoder == name


def test_a_kept_encoder_is_not_trained_further_on_what_would_test_it(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    run_id = record_of(project, "finetune").run_id
    with pytest.raises(LeakageError, match=r"'run:finetune-tiny-vit-\w+:0' was trained on patient"):
        project.finetune(f"run:{run_id}:0", changes=QUICK, **SETTINGS)
    abroad = {"train_cohort": "abroad", "external": (), "folds": 2}
    [again] = project.finetune(f"run:{run_id}:0", changes=QUICK, save=True, **abroad, **SETTINGS)
    # What the first training saw, the second one's encoder has seen.
    name = f"run:{again.run_id}:1"
    project.extract(name)
    with pytest.raises(LeakageError, match="was trained on patient 'home-"):
        project.probe(name, where="cohort = 'home'")


def test_kept_encoders_are_named_by_the_fold_that_they_leave_out(tmp_path):
    write_cohort(tmp_path, size=16)
    rows = [f"home-{number:03d},{1 + number % 3}" for number in range(12)]
    rows += ["nobody,0"]  # a fold that none of the images is in
    (tmp_path / "folds.csv").write_text("\n".join(["patient_id,fold", *rows]) + "\n")
    project = embedcache.open(tmp_path)
    folds = tmp_path / "folds.csv"
    [outcome] = project.finetune("tiny-vit", changes=QUICK, folds=folds, save=True, **SETTINGS)
    run_id = outcome.run_id
    document = json.loads((project.workspace.weights / run_id / "encoders.json").read_text())
    assert [one["fold"] for one in document["encoders"]] == [1, 2, 3]
    for one in document["encoders"]:
        left_out = {f"home-{number:03d}" for number in range(12) if 1 + number % 3 == one["fold"]}
        assert not left_out & set(one["trained_on"])
        assert len(left_out) + len(one["trained_on"]) == 12
    with pytest.raises(EncoderWeightsError, match="has no fold '0'; expected one of 1, 2, 3"):
        project.extract(f"run:{run_id}:0")


def test_where_nobody_can_tell_what_it_was_trained_on_an_encoder_is_refused(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    run_id = record_of(project, "finetune").run_id
    project.extract(f"run:{run_id}:1")
    shutil.rmtree(project.workspace.weights)
    with pytest.raises(StoreCorruptError, match=r"encoders.json is missing"):
        project.probe(f"run:{run_id}:1", train_cohort="abroad", external=(), folds=3)


def test_weights_that_were_not_kept_are_made_again(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    run_id = record_of(project, "finetune").run_id
    kept = project.workspace.weights / run_id
    before = {path.name: path.read_bytes() for path in kept.glob("*.safetensors")}
    shutil.rmtree(kept)
    with pytest.raises(EncoderWeightsError, match="kept no weights; run the same `embedcache fine"):
        project.extract(f"run:{run_id}")
    [outcome] = project.finetune("tiny-vit", changes=QUICK, save=True, **SETTINGS)
    assert outcome.run_id == run_id
    assert {path.name: path.read_bytes() for path in kept.glob("*.safetensors")} == before


def test_weights_of_another_training_are_not_kept_as_those_of_the_run(tuned, tmp_path, monkeypatch):
    project = copied(tuned, tmp_path)
    shutil.rmtree(project.workspace.weights)

    def elsewhere(fabric, job, *callbacks):  # stands for another device
        return train_fold(fabric, replace(job, seed=5), *callbacks)

    monkeypatch.setattr("embedcache.finetune.train.train_fold", elsewhere)
    with pytest.raises(RunError, match="predicts other values than were published"):
        project.finetune("tiny-vit", changes=QUICK, save=True, **SETTINGS)
    assert not list(project.workspace.weights.glob("*/encoders.json"))


def test_runs_and_folds_that_are_not_there_are_named(tuned):
    project = embedcache.open(tuned)
    run_id = record_of(project, "finetune").run_id
    with pytest.raises(EncoderWeightsError, match="no run 'nonsense' in"):
        project.extract("run:nonsense")
    with pytest.raises(EncoderWeightsError, match="has no fold '9'; expected one of 0, 1, 2, 3, 4"):
        project.extract(f"run:{run_id}:9")
    with pytest.raises(RunError, match="has its own weights and preprocessing"):
        project.extract(f"run:{run_id}:0", preprocess="pad-square")


def test_verify_finds_damage_and_repair_drops_what_can_be_made_again(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    pictures = pictures_of(project)
    chunk = next(pictures.glob("seg/*.zarr/c/0/0"))
    weights = next(project.workspace.weights.glob("*/fold-3.safetensors"))
    for path in (chunk, weights):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    assert {Path(f.path) for f in project.verify().findings} == {chunk, weights}
    with marked(project.workspace.training):
        report = project.verify(repair=True)
    assert any("in use by a training" in note for note in report.notes)
    assert any("finetune --save" in note for note in report.notes)
    assert pictures.exists()
    report = project.verify(repair=True)
    assert any("makes it again" in note for note in report.notes)
    assert project.verify().findings == ()
    assert not pictures.exists()


def test_gc_drops_pictures_unless_a_training_has_yet_to_end(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    pictures = pictures_of(project)
    under_way = project.workspace.training / "finetune-other-0123"
    left = project.workspace.training / record_of(project, "finetune").run_id
    for folder in (under_way, left):
        folder.mkdir(parents=True)
    project.gc()
    assert pictures.exists()
    assert not left.exists()
    shutil.rmtree(under_way)
    with marked(project.workspace.training):
        project.gc()
        assert pictures.exists()
    (project.workspace.training / ".active-killed").touch()  # nobody holds it
    assert project.gc().freed_bytes > 0
    assert not pictures.exists()


# What cannot be done


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
    with pytest.raises(LeakageError, match="patient 'home-000' is in the training cohort and in"):
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


# The command


ARGUMENTS = ("--encoder-file", str(FILE), "--set", "lr=1e-3", "-b", "16", "--resamples", "100")


def test_the_command_prints_a_table_a_line_an_epoch_and_what_it_cost(command, tmp_path):
    write_cohort(tmp_path, cohorts=("home", "abroad"), size=16)
    asked = ("finetune", "-m", "tiny-cnn", "--epochs", "2", "--folds", "2", *ARGUMENTS)
    said = command(*asked)
    assert said.code == 0, said.err
    assert "macro F1 [95 % interval over patients]" in said.out
    assert "home: 12 patients, 72 images, tested out of fold" in said.out
    lines = [line for line in said.err.splitlines() if line.startswith("fold ")]
    assert len(lines) == 4
    assert "fold 1 epoch 2: loss " in lines[-1]
    assert "images/s" in lines[-1]
    assert "tiny-cnn (finetune): 2 folds, " in said.err
    assert list((tmp_path / ".embedcache" / "logs").glob("*/fold-1/events.out.tfevents*"))
    again = command(*asked, "--json", "-q")
    assert again.err == ""
    [outcome] = json.loads(again.out)
    assert outcome["was_cached"]
    assert outcome["run"]["method"]["regime"] == "finetune"


def test_progress_can_be_read_by_a_program(command, tmp_path):
    write_cohort(tmp_path, size=16)
    said = command(
        *("finetune", "-m", "tiny-vit", "--epochs", "1", "--folds", "2", *ARGUMENTS),
        *("--progress", "jsonl", "--regime", "head-only"),
    )
    lines = [json.loads(line) for line in said.err.splitlines() if line.startswith('{"fold')]
    assert [(one["fold"], one["epoch"], one["n_epochs"]) for one in lines] == [(0, 1, 1), (1, 1, 1)]
    said = command(
        *("finetune", "-m", "tiny-vit", "--epochs", "1", "--folds", "2", *ARGUMENTS),
        *("--progress", "bar", "--regime", "partial:1"),
    )
    assert "fold 1, epoch 1" in said.err


def test_the_recipe_can_be_shown_changed_and_given_back(command, tmp_path, monkeypatch):
    monkeypatch.setenv("EMBEDCACHE_BATCH_SIZE", "64")  # of `extract`
    shown = command("finetune", "--show-config")
    assert shown.code == 0
    assert "layer_decay = 0.75" in shown.out
    (tmp_path / "mine.toml").write_text(shown.out.replace("epochs = 30", "epochs = 3"))
    write_cohort(tmp_path, size=16)
    said = command(
        *("finetune", "-m", "tiny-vit", "--config", "mine.toml", "--folds", "2"),
        *(
            "--encoder-file",
            str(FILE),
            "--resamples",
            "100",
            "--json",
            "--progress",
            "off",
            "--epochs",
            "1",
        ),
    )
    [outcome] = json.loads(said.out)
    assert outcome["run"]["method"]["recipe"]["epochs"] == 1
    assert outcome["run"]["method"]["recipe"]["batch_size"] == 32
    wrong = command("finetune", "-m", "tiny-vit", "--set", "epoch=1", *ARGUMENTS)
    assert wrong.code == 1
    assert wrong.err == "embedcache: --set: no recipe key 'epoch'; did you mean 'epochs'?\n"


def started(folder: Path, *extra: str, first: str = "") -> subprocess.Popen:
    """Start a long training in a session of its own, after some statements."""
    asked = ("finetune", "-m", "tiny-vit", "--epochs", "400", "--folds", "2", *ARGUMENTS, *extra)
    code = f"{IN_FOREGROUND}{first}from embedcache_cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *asked],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def is_there(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_it_cleanly(tmp_path, number):
    write_cohort(tmp_path, size=16)
    with started(tmp_path, "-j", "2") as process:
        lines = []
        while not any(line.startswith("fold 0 epoch 2:") for line in lines):
            lines.append(process.stderr.readline())
            assert lines[-1], "".join(lines)
        os.killpg(process.pid, number)
        rest = process.stderr.read()
    assert process.returncode == 128 + number
    assert rest.endswith("what was finished is kept, run it again to go on\n"), rest
    assert "Traceback" not in rest
    deadline = time.monotonic() + PATIENCE
    while is_there(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert list(tmp_path.glob(".embedcache/training/*/fold-0/state.pt"))


@pytest.mark.slow
def test_an_error_beside_readers_ends_the_process(tmp_path):
    """As it would not if they took no notice of SIGTERM, by which Python ends them."""
    write_cohort(tmp_path, size=16)
    broken = "import embedcache.finetune.train as train; train._Training._move = None; "
    with started(tmp_path, "-j", "2", first=broken) as process:
        try:
            said = process.communicate(timeout=PATIENCE)[1]
        finally:
            process.kill()
    assert process.returncode == 1
    assert "TypeError: 'NoneType' object is not callable" in said


@pytest.mark.slow
def test_two_of_the_same_command_share_the_work(tmp_path):
    write_cohort(tmp_path, size=16)
    asked = ("--epochs", "3")
    both = [started(tmp_path, *asked) for _ in "ab"]
    said = [process.communicate(timeout=PATIENCE)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], "\n".join(said)
    trained = [sum(line.startswith("fold ") for line in text.splitlines()) for text in said]
    assert sorted(trained) == [0, 6]
    assert len(RunFiles(embedcache.open(tmp_path).workspace).ids()) == 1


def test_who_waits_for_another_says_so_and_takes_its_run(tuned, tmp_path):
    project = copied(tuned, tmp_path)
    run_id = record_of(project, "finetune").run_id
    run = project.workspace.runs / run_id
    shutil.move(run, tmp_path / "published later")
    other = filelock.FileLock(project.workspace.runs / f".lock-{run_id}")
    other.acquire()
    messages: list[str] = []

    def publish(message: str) -> None:
        messages.append(message)
        shutil.move(tmp_path / "published later", run)
        other.release()

    callbacks = Callbacks(on_message=publish)
    [outcome] = project.finetune("tiny-vit", changes=QUICK, callbacks=callbacks, **SETTINGS)
    assert messages == [f"another process is training {run_id}; waiting for it to end"]
    assert outcome.was_cached


def test_a_full_disk_keeps_the_last_epoch_and_says_so(tmp_path, capfd, monkeypatch):
    import errno

    write_cohort(tmp_path, size=16)
    monkeypatch.chdir(tmp_path)
    save = torch.save
    written: list[int] = []

    class Full:
        """Stands for a file on a disk with no room left, behind torch's own writer."""

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def flush(self):
            pass

    def full(state, stream):
        written.append(1)
        save(state, Full() if len(written) == 4 else stream)  # the second epoch's state

    monkeypatch.setattr("torch.save", full)
    asked = ["finetune", "-m", "tiny-vit", "--epochs", "2", "--folds", "2", *ARGUMENTS]
    assert run_command(asked) == 1
    said = capfd.readouterr().err
    assert "No space left on device; everything finished before is safe" in said
    monkeypatch.setattr("torch.save", save)
    assert run_command(asked) == 0
    lines = capfd.readouterr().err
    assert "fold 0 epoch 1:" not in lines
    assert "fold 0 epoch 2:" in lines
    assert not list(tmp_path.glob(".embedcache/**/.tmp-*"))
