"""Runs of format version 1 are read as what they were: question, method, data, answers, scores."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from golden_files import HERE, read_expected, unpack

import embedcache
from embedcache.data.predictions import LabelSets, Measurements, Predictions
from embedcache.data.question import Question
from embedcache.encoders.kept import kept_encoders
from embedcache.errors import LeakageError
from embedcache.runs.files import RunFiles
from embedcache.runs.methods import CurveMethod, FinetuneMethod, ProbeMethod, ZeroShotMethod
from embedcache.verbs.session import Session

EXPECTED = read_expected(HERE / "store_v1_runs.json")
RUNS = {run["name"]: run["record"] for run in EXPECTED["runs"]}
USUAL = Question(train_cohort="home", external=("abroad",), folds=3)
RECIPE = RUNS["finetune, head-only"]["settings"]["recipe"]
PROMPTS = tuple(
    {
        "name": name,
        "labels": [name],
        "prompts": [f"An ultrasound image of {words}." for words in phrases],
    }
    for name, phrases in (
        ("abdomen", ("the belly", "the stomach")),
        ("brain", ("the head",)),
        ("femur", ("a thigh", "a long bone", "a leg")),
    )
)
ASKED = {
    "probe": (USUAL, ProbeMethod()),
    "probe, external by folds": (USUAL, ProbeMethod(external_by="folds")),
    "probe, knn": (USUAL, ProbeMethod(probe="knn")),
    "probe, protocol fetalclip": (
        replace(USUAL, official_split=True),
        ProbeMethod(protocol="fetalclip"),
    ),
    "probe, task regression": (
        replace(USUAL, label="ga_weeks", task="regression"),
        ProbeMethod(probe="ridge"),
    ),
    "probe, task multilabel": (replace(USUAL, label="findings", task="multilabel"), ProbeMethod()),
    "control, majority": (USUAL, ProbeMethod()),
    "control, metadata": (USUAL, ProbeMethod()),
    "control, shuffled labels": (USUAL, ProbeMethod()),
    "curve": (replace(USUAL, external=()), CurveMethod(n_draws=3)),
    "zeroshot": (
        Question(external=("abroad", "home")),
        ZeroShotMethod(PROMPTS, logit_scale=100.0),
    ),
    "finetune, finetune, saved": (USUAL, FinetuneMethod("finetune", RECIPE)),
    "finetune, head-only": (USUAL, FinetuneMethod("head-only", RECIPE)),
}


@pytest.fixture
def project(tmp_path):
    unpack(HERE / "store_v1_runs.zip", tmp_path)
    return embedcache.open(tmp_path)


def rows_of(table, name):
    return [row for row in EXPECTED[table] if row["run_id"] == RUNS[name]["run_id"]]


def test_there_is_a_run_of_every_kind(project):
    records = RunFiles(project.workspace).readable_records()
    assert {record.run_id for record in records} == {run["run_id"] for run in RUNS.values()}
    assert {record.kind for record in records} == {
        "probe",
        "control",
        "curve",
        "zeroshot",
        "finetune",
    }
    assert set(ASKED) == set(RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_a_record_says_what_was_asked_and_how_it_was_answered(project, name):
    record = RunFiles(project.workspace).record(RUNS[name]["run_id"])
    question, method = ASKED[name]
    assert record.request.question == question
    assert record.method == method


@pytest.mark.parametrize("name", RUNS)
def test_a_record_says_what_was_chosen_and_of_which_data(project, name):
    document = RUNS[name]
    record = RunFiles(project.workspace).record(document["run_id"])
    results = dict(document["results"])
    assert list(record.notes) == results.pop("notes")
    assert record.n_skipped == results.pop("n_skipped")
    assert record.results == results
    assert record.request.data.document() == {"external": [], **document["data"]}
    for key in ("run_id", "kind", "encoder", "fingerprint", "created", "seconds"):
        assert getattr(record, key) == document[key], key
    assert record.request.versions == document["versions"]
    assert record.request.n_resamples == document["settings"].get("n_resamples", 0)
    for key, value in record.request.constants.items():
        assert document["settings"][key] == value


@pytest.mark.parametrize("name", [name for name in RUNS if name != "zeroshot"])
def test_a_record_gives_its_question_back_on_the_very_folds_and_images(project, name):
    record = RunFiles(project.workspace).record(RUNS[name]["run_id"])
    study = Session(project.workspace).study(record.question(project.workspace))
    assert study.folds.folds_id == record.request.data.folds_id
    assert study.snapshot == record.request.data.manifest
    tested = {row["patient_id"]: row["fold"] for row in rows_of("predictions", name)}
    for patient, fold in tested.items():
        assert fold is None or study.folds.patients[patient] == fold


@pytest.mark.parametrize("name", [name for name in RUNS if name != "curve"])
def test_the_answers_of_a_run_are_read_to_the_last_bit(project, name):
    runs = RunFiles(project.workspace)
    run_id = RUNS[name]["run_id"]
    written = {row["image_id"]: row for row in rows_of("predictions", name)}
    answers = runs.answers(run_id)
    assert sum(len(cohort.image_id) for cohort in answers) == len(written)
    for cohort in answers:
        for number, image in enumerate(cohort.image_id):
            row = written[image]
            fold = -1 if row["fold"] is None else row["fold"]
            assert (cohort.role, cohort.cohort[number]) == (row["role"], row["cohort"])
            assert (cohort.patient_id[number], cohort.fold[number]) == (row["patient_id"], fold)
            assert answer(cohort, number) == (row["label"], row["p"], row["value"])
    assert runs.fold_answers(run_id) == ()  # version 1 kept their mean only


def answer(cohort, number):
    """Return label, probabilities and value of an image, as SQL has them."""
    if isinstance(cohort, Measurements):
        return f"{cohort.truth[number]:g}", None, cohort.value[number]
    values = cohort.probability[number].tolist()
    if isinstance(cohort, LabelSets):
        label = "|".join(np.array(cohort.names)[cohort.truth[number]]) or "-"
        return label, dict(zip(cohort.names, values, strict=True)), None
    assert isinstance(cohort, Predictions)
    return cohort.label[number], dict(zip(cohort.classes, values, strict=True)), None


@pytest.mark.parametrize("name", RUNS)
def test_the_scores_of_a_run_are_read_to_the_last_bit(project, name):
    estimates = RunFiles(project.workspace).estimates(RUNS[name]["run_id"])
    written = {key_of(**row): row for row in rows_of("metrics", name)}
    assert len(estimates) == len(written)
    for estimate in estimates:
        row = written[key_of(**asdict(estimate))]
        for key in ("value", "low", "high", "n_patients", "n_images"):
            stored = np.nan if row[key] is None else row[key]
            assert np.array_equal(getattr(estimate, key), stored, equal_nan=True), key


def key_of(cohort, role, scoring, level, metric, label, **_):
    return cohort, role, scoring, level, metric, label or ""


PROBES = [name for name in RUNS if name.startswith("probe")]


@pytest.mark.parametrize("name", PROBES)
def test_the_same_question_has_the_same_figures_today(project, name):
    question, method = ASKED[name]
    [outcome] = project.probe(
        "fake",
        label=question.label,
        task=question.task,
        folds=3,
        probe=method.probe,
        protocol=method.protocol,
        external_by=method.external_by,
        n_resamples=100,
    )
    assert not outcome.was_cached
    stored = RunFiles(project.workspace).record(RUNS[name]["run_id"])
    assert outcome.record.request.question.document() == stored.request.question.document()
    assert outcome.record.request.data == stored.request.data
    assert outcome.n_skipped == stored.n_skipped
    todays = {key_of(**row): row for row in project.sql(metrics_of(outcome.run_id)).to_pylist()}
    for row in rows_of("metrics", name):
        if row["metric"].endswith("_calibrated"):
            assert key_of(**row) in todays
            continue  # since nested-patient-cv-3, temperatures are fitted to smoothed targets
        values = [row[key] for key in ("value", "low", "high")]
        today = [todays[key_of(**row)][key] for key in ("value", "low", "high")]
        written = [np.nan if value is None else value for value in values]
        assert today == pytest.approx(written, rel=1e-6, abs=1e-9, nan_ok=True), key_of(**row)


def metrics_of(run_id):
    return f"FROM metrics WHERE run_id = '{run_id}'"


def test_encoders_that_were_kept_are_encoders_still(project):
    run_id = RUNS["finetune, finetune, saved"]["run_id"]
    assert len(kept_encoders(project.workspace, f"run:{run_id}")) == 3
    project.extract(f"run:{run_id}:1", encoder_file=HERE / "tiniest_encoder.py")
    assert project.embeddings(f"run:{run_id}:1").X.shape == (43, 8)
    with pytest.raises(LeakageError, match=r"'run:finetune-tiniest-vit-\w+:1' was trained on"):
        project.probe(f"run:{run_id}:1", folds=3)


def test_a_table_of_folds_that_was_lost_is_mended_from_the_question(project):
    record = RunFiles(project.workspace).record(RUNS["probe, task regression"]["run_id"])
    folds_id = record.request.data.folds_id
    written = [row for row in EXPECTED["folds"] if row["folds_id"] == folds_id]
    for entry in project.workspace.folds.list():
        if entry.name.startswith(folds_id):
            (project.workspace.folds / entry.name).delete()
    assert project.verify().findings != ()
    project.verify(repair=True)
    assert project.verify().findings == ()
    query = f"FROM folds WHERE folds_id = '{folds_id}' ORDER BY patient_id"
    assert project.sql(query).to_pylist() == written
