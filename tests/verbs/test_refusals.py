"""What a caller gives that no verb can work with is one line, before anything is computed."""

from __future__ import annotations

import pytest

from embedcache.errors import RunError


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        ("compare", {"level": "patients"}, "no level 'patients'; it may be image, patient"),
        ("compare", {"scoring": "mask"}, "no scoring 'mask'; it may be all, masked"),
        ("compare", {"n_resamples": 0}, "n_resamples is 0; expected a whole number from 1"),
        ("extract", {"models": "pixels", "shard": (0, 2)}, r"shard is \(0, 2\); expected \(i, n\)"),
        ("extract", {"models": "pixels", "shard": (3, 2)}, r"shard is \(3, 2\)"),
        ("extract", {"models": "pixels", "shard": (1, 0)}, r"shard is \(1, 0\)"),
        ("extract", {"models": "pixels", "batch_size": 0}, "batch_size is 0"),
        ("probe", {"models": "pixels", "n_resamples": 0}, "n_resamples is 0"),
        ("probe", {"models": "pixels", "seed": -1}, "seed is -1; expected a whole number from 0"),
        ("probe", {"models": "pixels", "task": "ranking"}, "no task 'ranking'"),
        ("folds", {"folds": True}, "folds is True"),
    ],
)
def test_values_out_of_range_are_refused(probed, verb, arguments, message):
    with pytest.raises(RunError, match=message):
        getattr(probed, verb)(**arguments)


def test_a_metric_picks_the_newest_run_of_a_task_that_has_it(probed):
    probed.probe("pixels", task="regression", label="frame", n_resamples=100)
    assert probed.compare(n_resamples=100).metric == "r2"
    report = probed.compare(metric="balanced_accuracy", n_resamples=100)
    assert [cohort.cohort for cohort in report.cohorts] == ["home", "abroad"]
    assert "runs of regression left out" in report.notes[0]


def test_a_curve_prints_the_number_of_patients(probed):
    curves = probed.learning_curves("pixels", sizes=[2, 4], n_draws=2)
    assert curves.table()["label"].to_pylist()[:2] == ["2", "4"]
