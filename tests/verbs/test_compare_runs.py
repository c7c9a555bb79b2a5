"""Stored runs against each other."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from edits import add_column
from made_answers import made_predictions, measurements
from made_runs import store_run
from sklearn.metrics import f1_score

from embedcache.errors import RunError
from embedcache.runs.files import RunFiles
from embedcache.runs.methods import ProbeMethod
from embedcache.scoring.evaluate import SCORES, evaluate
from embedcache.verbs.compare_report import CompareReport

# The runs that are made here have no manifest in the store.
NO_MANIFEST = re.compile(
    r"note: the manifest of probe-\w+ is not stored: equal images are not looked for\n"
)


def external(one, cohort="abroad"):
    return replace(one, role="external", fold=np.full(len(one.label), -1))


@pytest.fixture
def store(project):
    """Write a run of some predictions into a project's store."""
    project.workspace.create_store()

    def write(run_id, encoder, *answers, **settings):
        store_run(project, run_id, encoder, answers, **settings)

    write.project = project
    return write


def two_cohorts(sharp, own):
    abroad = made_predictions(sharp / 2, seed=1, labels="ab", own=own, cohort="abroad")
    return made_predictions(sharp, own=own), external(abroad)


@pytest.fixture
def three(store):
    """Runs of three encoders on the same images."""
    for own, (name, sharp) in enumerate({"best": 4.0, "good": 3.6, "bad": 0.2}.items(), 1):
        store(f"probe-{name}", name, *two_cohorts(sharp, own))
    return store


def test_the_table_has_all_that_a_reader_needs(three, command):
    answer = command("compare", "--resamples", "500")
    assert answer.code == 0
    assert NO_MANIFEST.fullmatch(answer.err)
    first, *_, tail = answer.out.split("\n\n")
    lines = first.splitlines()
    assert lines[0].startswith("home, tested out of fold: 20 patients, 85 images, 3 classes")
    assert lines[1].split() == [
        "run", "macro_f1", "rank", "P(best)", "group"
    ]  # fmt: skip
    assert re.search(r"\nbehind \w+, paired by patient", answer.out)
    assert all(len(line) <= 80 for line in answer.out.splitlines())
    assert {line.split()[0] for line in lines[3:5]} == {"best", "good"}
    assert lines[5].startswith("bad ")
    assert lines[5].split()[-1] == "2"
    assert "abroad, external: " in answer.out
    assert "lost outside" in answer.out
    assert "bad: probe-bad" in tail


def test_a_verdict_is_of_the_run_that_its_row_begins_with(three, command):
    _, behind, *_ = command("compare", "--resamples", "500").out.split("\n\n")
    assert re.search(r"^bad .* worse$", behind, re.MULTILINE)
    _, pairs, *_ = command("compare", "--resamples", "500", "--pairs").out.split("\n\n")
    assert re.search(r"^best +bad .* better$", pairs, re.MULTILINE)
    assert "worse" not in pairs.partition("---")[2]


@pytest.mark.parametrize("margin", ["x", [0.1], 0, float("nan"), True])
def test_a_margin_that_is_no_number_above_0_is_an_error_of_one_line(project, margin):
    with pytest.raises(RunError, match=r"margin is .*; expected a number above 0"):
        project.compare(margin=margin)


def test_json_has_every_pair_and_all_sections(three, command):
    report = json.loads(command("compare", "--json", "--resamples", "100", "--by", "class").out)
    assert set(report) == set(CompareReport.__slots__)
    home, abroad = report["cohorts"]
    assert len(home["comparison"]["pairs"]) == 3
    assert abroad["classes"] == ["a", "b"]
    assert len(report["drops"]) == 3
    assert len(report["parts"]) == 3 * 3 + 3 * 2
    assert {one["metric"] for one in report["estimates"]["best"]} >= {"ece", "log_loss"}


def test_the_latest_run_of_each_encoder_counts(three, command):
    three("probe-new", "bad", *two_cohorts(4.0, 9), created="2025-02-01")
    assert "bad: probe-new" in command("compare", "--resamples", "100").out


def test_runs_on_other_images_or_folds_are_left_out_and_named(three, command):
    home, abroad = two_cohorts(1.0, 7)
    three("probe-few", "few", home.take(np.arange(70)), abroad)
    three("probe-folds", "folds", replace(home, fold=(home.fold + 1) % 3), abroad)
    three("probe-classes", "classes", replace(home, label=home.label[::-1]), abroad)
    answer = command("compare", "--resamples", "100", "-m", "best", "-m", "few", "-m", "folds",
                     "-m", "classes", "-m", "good")  # fmt: skip
    assert "few: " not in answer.out
    assert "best: " in answer.out
    assert "probe-few left out: other images of 'home' (70, not 85)" in answer.err
    assert "probe-folds left out: other folds of 'home'" in answer.err
    assert "probe-classes left out: other patients or labels in 'home'" in answer.err


def test_an_older_run_on_the_same_images_stands_in_for_a_newer_one_on_others(three, command):
    home, abroad = two_cohorts(1.0, 7)
    three("probe-few", "bad", home.take(np.arange(70)), abroad, created="2024-01-01")
    three("probe-more", "good", home.take(np.arange(70)), abroad, created="2024-01-01")
    answer = command("compare", "--resamples", "100")
    assert "bad: probe-bad" in answer.out
    assert NO_MANIFEST.fullmatch(answer.err)


def test_kinds_of_probe_are_told_apart_when_they_meet(three, command):
    home, abroad = two_cohorts(2.0, 5)
    three("zeroshot-best", "best", external(home), abroad, kind="zeroshot")
    answer = command("compare", "--resamples", "100")
    assert "best (zeroshot): zeroshot-best" in answer.out
    assert "best (logistic): probe-best" in answer.out
    lost = answer.out.split("lost outside")[1]
    assert "zeroshot)  " not in lost  # it was trained on neither


def test_probes_of_one_encoder_are_told_apart_and_controls_wait_to_be_named(three, command):
    for own, (family, protocol) in enumerate([("knn", "default"), ("logistic", "dinov2")], 4):
        method = ProbeMethod(family, protocol)
        three(f"probe-{family}", "good", *two_cohorts(2.0, own), method=method)
    by_folds = ProbeMethod(rule="one-se", external_by="folds", seed=3)
    three("probe-folds", "good", *two_cohorts(2.0, 6), method=by_folds)
    home, abroad = two_cohorts(2.0, 7)
    shuffled = replace(home, label=home.label[::-1])
    three("control-good", "good", shuffled, abroad, kind="control", created="2026-01-01")
    answer = command("compare", "-m", "good", "--resamples", "200")
    assert NO_MANIFEST.fullmatch(answer.err)
    names = [line.rpartition(": ")[0] for line in answer.out.splitlines()[-5:-1]]
    assert names == [
        "good (knn)",
        "good (logistic)",
        "good (logistic, dinov2)",
        "good (logistic, one-se, external by folds)",
    ]
    named = command("compare", "control-good", "--resamples", "100")
    assert "good: control-good" in named.out


def test_runs_can_be_named(three, command):
    answer = command("compare", "probe-bad", "probe-good", "--resamples", "100", "--pairs")
    assert "best" not in answer.out.replace("P(best)", "")
    assert "all pairs, paired by patient" in answer.out
    assert command("compare", "probe-bad", "-m", "bad").code == 2


def test_scores_by_a_manifest_column_and_by_class(three, project, command):
    answer = command("compare", "--by", "class", "--resamples", "100")
    home, abroad = answer.out.split("macro_f1 by class")[1:]
    assert [line[0] for line in home.splitlines()[3:12]] == [*"aaabbbccc"]
    assert [line[0] for line in abroad.splitlines()[3:9]] == [*"aaabbb"]
    answer = command("compare", "--by", "planet")
    assert answer.code == 1
    assert "no column 'planet'" in answer.err


def test_a_drop_is_over_the_classes_that_occur_outside(three, command):
    report = json.loads(command("compare", "--json", "--resamples", "100", "-m", "bad").out)
    home, abroad = two_cohorts(0.2, 3)
    inside = home.take(np.flatnonzero(np.array(home.label) != "c"))
    expected = np.subtract(*(
        f1_score(one.codes(), one.predicted(), labels=[0, 1], average="macro")
        for one in (inside, abroad)
    ))  # fmt: skip
    (found,) = report["drops"]
    assert found["drop"]["value"] == pytest.approx(expected)
    parts = found["shift"]
    assert parts["mix"]["value"] + parts["rest"]["value"] == pytest.approx(expected)
    assert set(found["by_metric"]) == {"macro_f1", "balanced_accuracy", "auroc"}
    shares = {share.pop("label"): share for share in found["shares"]}
    assert shares["c"]["outside"] == 0
    assert sum(share["home"] for share in shares.values()) == pytest.approx(1)
    assert sum(share["estimated"] for share in shares.values()) == pytest.approx(1)


def test_a_drop_is_taken_apart_where_the_score_is_of_confusion_tables(three, command):
    answer = command("compare", "-m", "bad", "--drops")
    apart = answer.out.split("bad on abroad")[1]
    names = [line.split("  ")[0] or line.strip() for line in apart.splitlines()[3:9]]
    assert [line.strip()[:12] for line in apart.splitlines()[3:9]] == [
        "macro_f1    ", "by the mix o", "the rest    ", "won back by ", "auroc       ",
        "balanced_acc",
    ]  # fmt: skip
    assert len(names) == 6
    assert "class shares of images" in answer.out
    answer = command("compare", "-m", "bad")
    assert "of it class mix" in answer.out
    auroc = json.loads(command("compare", "-m", "bad", "--metric", "auroc", "--json").out)
    (found,) = auroc["drops"]
    assert found["shift"] is None
    assert found["drop"] == found["by_metric"]["auroc"]


def test_drops_are_columns_of_the_table(three, project):
    rows = project.compare(models=["bad"]).table().to_pylist()
    assert [row["drop"] is None for row in rows] == [True, False]
    assert rows[1]["drop"] == pytest.approx(rows[1]["drop_mix"] + rows[1]["drop_rest"])
    assert rows[1]["prior_adjusted"] is not None


def test_subgroups_of_a_column_are_held_against_the_rest_and_the_worst_is_named(
    project, tmp_path, command
):
    images = [row["image_id"] for row in project.images().to_pylist()]
    site = {name: "abc"[number % 3] for number, name in enumerate(images)}
    lone = next(name for name in images if "home" in name and "abdomen" in name)
    add_column(
        tmp_path,
        "site",
        lambda lines: ["x" if lone in line else site[line.split(",")[0]] for line in lines],
    )
    project.extract("pixels")
    project.probe("pixels", folds=3)
    answer = command("compare", "--by", "site", "--json")
    assert answer.code == 0
    report = json.loads(answer.out)
    for cohort in report["subgroups"]:
        groups = {one["subgroup"]: one for one in cohort["shortfalls"]}
        assert cohort["worst"] == cohort["shortfalls"][0]["subgroup"]
        assert cohort["largest"]["value"] == cohort["shortfalls"][0]["value"]
        assert set("abc") <= set(groups)
        if cohort["cohort"] == "home":
            assert groups["x"]["classes"] == ["abdomen"]
            assert groups["x"]["n_patients"] == 1
            assert groups["x"]["low"] is None
            assert cohort["shortfalls"][-1]["subgroup"] == "x"
    answer = command("compare", "--by", "site")
    assert "home: how far each site is behind all others" in answer.out
    assert "home: the worst site; the interval allows for the choice" in answer.out
    of_groups = answer.out.split("home: macro_f1 by site")[1]
    assert max(map(len, of_groups.splitlines()[:-4])) <= 80
    answer = command("compare", "--by", "site", "--metric", "auroc")
    assert "site 'x' of 'home' left out: auroc needs two classes; there is only abd" in answer.err
    assert command("compare", "--by", "cohort", "--json").out.count('"subgroups": []') == 1


def test_levels_and_masks_are_options(three, command):
    report = json.loads(
        command("compare", "--json", "--level", "patient", "--scoring", "masked",
                "--resamples", "100", "-m", "bad").out
    )  # fmt: skip
    home, abroad = two_cohorts(0.2, 3)
    assert {one["level"] for one in report["estimates"]["bad"]} == {"patient"}
    kinds = {(one["cohort"], one["scoring"], one["metric"]) for one in report["estimates"]["bad"]}
    assert {("home", "all", "ece"), ("abroad", "masked", "ece")} <= kinds
    assert ("abroad", "all", "ece") not in kinds
    expected = evaluate([home, abroad], n_resamples=100)
    for cohort, scoring in zip(report["cohorts"], ("all", "masked"), strict=True):
        (value,) = [
            one.value
            for one in expected
            if (one.cohort, one.scoring, one.level, one.metric)
            == (cohort["cohort"], scoring, "patient", "macro_f1")
        ]
        assert cohort["comparison"]["standings"][0]["value"] == pytest.approx(value)


def test_a_class_that_a_cohort_lacks_leaves_that_cohort_out(three, command):
    answer = command("compare", "--metric", "f1:c", "--resamples", "100")
    assert "'abroad' left out: f1:c is not defined on its classes" in answer.err
    assert "abroad, external" not in answer.out


def test_calibration_and_operating_points_are_those_stored_with_the_runs(store, command):
    home, abroad = two_cohorts(2.0, 1)
    warm = replace(home, temperature=np.full(len(home.label), 1.5))
    store("probe-x", "x", warm, abroad)
    answer = command("compare", "--calibration", "--operating-points", "--resamples", "100")
    assert answer.code == 0
    calibration = answer.out.split("calibration, T")[1]
    assert "1.500" in calibration
    assert "reliability" in calibration
    of_class = calibration.split("calibration of each class")[1].split("reliability")[0]
    assert len([line for line in of_class.splitlines() if line.startswith("x  ")]) == 2 * 3 + 2
    assert max(map(len, calibration.split("reliability")[0].splitlines())) <= 80
    points = answer.out.split("operating points")[1]
    rows = [line for line in points.splitlines() if line.startswith("x  ")]
    assert len(rows) == 3 + 2
    inside, outside = (line.split() for line in (rows[0], rows[3]))
    assert inside[:3] == ["x", "home", "a"]
    assert outside[:3] == ["x", "abroad", "a"]
    assert inside[3] == outside[3]


def test_stored_scores_of_another_version_are_left_out_with_the_way_to_get_them(store, command):
    store("probe-new", "new", *two_cohorts(2.0, 1))
    store("probe-old", "old", *two_cohorts(1.9, 2), constants={"scores": "scores-1"})
    store("probe-older", "older", *two_cohorts(1.8, 3), constants={})
    report = store.project.compare(n_resamples=100)
    assert [name for name, scores in report.estimates.items() if scores] == ["new"]
    (note,) = [note for note in report.notes if "stored calibration" in note]
    assert f"not by {SCORES}: old (scores-1), older (none); `embedcache probe -m old -m o" in note
    answer = command("compare", "--operating-points", "--resamples", "100")
    points = answer.out.split("operating points")[1].split("\n\n")[0]
    assert {line.split()[0] for line in points.splitlines()[1:]} == {"run", "---", "new"}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["no-such-run"], "no run 'no-such-run'"),
        (["-m", "nobody"], "no run of 'nobody'; there are runs of bad, best, good"),
        (["--metric", "f2"], "no metric 'f2'"),
        (["--metric", "f1:zebra"], "no class 'zebra'"),
    ],
)
def test_what_is_not_there_is_an_error_of_one_line(three, command, arguments, match):
    answer = command("compare", *arguments)
    assert answer.code == 1
    assert match in answer.err
    assert len(answer.err.splitlines()) == 1


def test_a_store_without_runs_says_what_to_do(project, command):
    project.workspace.create_store()
    answer = command("compare")
    assert answer.code == 1
    assert "run `embedcache probe -m all`" in answer.err


def days(own):
    home = two_cohorts(1.0, own)[0]
    truth = np.random.default_rng(0).normal(20, 3, len(home.label))
    value = truth + np.random.default_rng(own).normal(size=len(truth))
    return measurements(truth, value, home.patient_id)


def test_a_run_of_another_task_than_the_newest_is_left_out_and_said(three, command):
    three("probe-days", "days", days(1), created="2024-01-01", task="regression")
    answer = command("compare", "--resamples", "100")
    assert answer.code == 0
    assert "days" not in answer.out
    assert "note: 1 runs of regression left out: 'probe-" in answer.err


def test_runs_of_numbers_are_compared_by_r2_and_have_no_classes(three, command):
    for own in (1, 2):
        three(f"probe-days{own}", f"days{own}", days(own), created="2026-01-01", task="regression")
    answer = command("compare", "--resamples", "100")
    assert answer.code == 0
    assert answer.out.startswith("home, tested out of fold: 20 patients, 85 images\n")
    assert "r2" in answer.out.splitlines()[1]
    assert "0 classes" not in answer.out
    assert "3 runs of classification left out: 'probe-days2' is of regression" in answer.err
    assert command("compare", "--by", "class", "--resamples", "100").code == 1


def test_runs_of_two_tasks_are_not_compared_where_they_are_named(three, command):
    three("probe-days", "days", days(1), task="regression")
    answer = command("compare", "probe-best", "probe-days")
    assert answer.code == 1
    assert "run 'probe-days' is of regression, 'probe-best' of classification" in answer.err
    assert "name runs of one task" in answer.err


def test_predictions_come_back_as_they_were_written(store):
    home, abroad = two_cohorts(1.0, 1)
    warm = np.where(home.fold == 0, np.nan, 2.0)
    store("probe-x", "x", replace(home, temperature=warm), abroad)
    inside, outside = RunFiles(store.project.workspace).answers("probe-x")
    assert np.array_equal(inside.probability, home.probability)
    assert np.array_equal(inside.temperature, warm, equal_nan=True)
    assert (outside.role, outside.temperature, outside.label) == ("external", None, abroad.label)
    assert (outside.fold == -1).all()
