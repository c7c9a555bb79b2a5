"""Answers and scores as tables, and back: to the last digit, in their order."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_answers import label_sets, made_predictions, measurements

from embedcache.files.documents import parse_table, table_bytes
from embedcache.runs.tables import (
    METRICS,
    PREDICTIONS,
    answers_of,
    estimates_of,
    metrics_table,
    predictions_table,
    with_all_columns,
)
from embedcache.scoring.estimates import Estimate
from embedcache.scoring.evaluate import evaluate


def again(answers, task="classification"):
    """Answers through a Parquet file."""
    table = parse_table(table_bytes(predictions_table("r-1", answers)))
    assert table.schema.equals(PREDICTIONS)
    return answers_of(table, task)


def assert_same(first, second):
    assert type(first) is type(second)
    for name in first.__dataclass_fields__:
        ours, theirs = getattr(first, name), getattr(second, name)
        if isinstance(ours, np.ndarray):
            assert ours.dtype == theirs.dtype, name
            np.testing.assert_array_equal(ours, theirs, err_msg=name)
        else:
            assert ours == theirs, name


@pytest.mark.parametrize("temperature", [None, "all", "some"])
def test_classes_come_back_as_they_were(temperature):
    home = made_predictions(2.0)
    n = len(home.label)
    fitted = {
        None: None,
        "all": np.linspace(0.1, 3, n) / 3,
        "some": np.where(home.fold == 0, np.nan, 1 / 3),
    }[temperature]
    home = replace(home, temperature=fitted)
    away = replace(
        made_predictions(1.0, labels="ab", cohort="away"),
        role="external",
        fold=np.full(len(made_predictions(1.0, labels="ab", cohort="away").label), -1),
    )
    for given_answers, stored in zip([home, away], again([home, away]), strict=True):
        assert_same(given_answers, stored)


def test_a_class_that_no_image_has_stays_a_class_of_the_model():
    (stored,) = again([made_predictions(1.0, labels="ac")])
    assert stored.classes == ("a", "b", "c")
    assert stored.own_classes == ("a", "c")


def test_numbers_come_back_to_the_last_digit():
    values = np.array(
        [0.1, 1 / 3, 2**53 + 2.0, 5e-324, 1.7976931348623157e308, -0.0, 123456789.123]
    )
    days = measurements(values, values[::-1].copy(), "abcdefg")
    (stored,) = again([days], "regression")
    assert_same(days, stored)


def test_numbers_of_few_digits_are_written_shortly():
    rows = predictions_table("r", [measurements([20, 0.5], [1 / 3, 2.0], "ab")]).to_pylist()
    assert [row["label"] for row in rows] == ["20", "0.5"]
    assert [row["predicted"] for row in rows] == ["0.333333", "2"]
    assert {row["correct"] for row in rows} == {row["p"] and 1 for row in rows} == {None}


def test_sets_of_labels_come_back_as_they_were():
    truth = np.array([[True, False], [False, False], [True, True]])
    probability = np.array([[1 / 3, 0.5], [1e-300, 0.1 + 0.2], [1.0, 0.0]])
    sets = label_sets(truth, probability, ["a", "b c"], ["p", "q", "p"])
    (stored,) = again([sets], "multilabel")
    assert_same(sets, stored)
    rows = predictions_table("r", [sets]).to_pylist()
    assert [row["label"] for row in rows] == ["a", "-", "a|b c"]
    assert [row["predicted"] for row in rows] == ["b c", "-", "a"]
    assert [row["correct"] for row in rows] == [False, True, False]


def test_answers_of_each_fold_hold_every_image_once_a_fold():
    away = made_predictions(1.0, cohort="away")
    n = len(away.label)
    rows = np.tile(np.arange(n), 3)
    by_fold = replace(away.take(rows), role="external", fold=np.repeat(np.arange(3), n))
    (stored,) = again([by_fold])
    assert_same(by_fold, stored)


def test_cohorts_come_back_in_the_order_in_which_they_were_written():
    parts = [made_predictions(1.0, cohort=name) for name in ("zoo", "home", "away")]
    assert [stored.cohort[0] for stored in again(parts)] == ["zoo", "home", "away"]
    assert again([]) == ()


def test_scores_come_back_as_they_were():
    scores = evaluate([made_predictions(1.0)], n_resamples=100)
    scores.append(
        Estimate("home", "in-domain", "all", "image", "f1", "a", 1 / 3, math.nan, math.nan, 1, 2)
    )
    stored = estimates_of(parse_table(table_bytes(metrics_table("r", scores))))
    assert str(stored) == str(tuple(scores))


def test_columns_that_a_run_was_written_without_have_what_they_stood_for():
    scores = metrics_table("r", evaluate([made_predictions(1.0)], n_resamples=100))
    old = scores.drop_columns(["level"])
    assert with_all_columns(old, "metrics").schema.equals(METRICS)
    assert set(with_all_columns(old, "metrics")["level"].to_pylist()) == {"image"}
    predictions = predictions_table("r", [made_predictions(1.0)])
    shuffled = predictions.select(PREDICTIONS.names[::-1]).drop_columns(["value", "temperature"])
    restored = with_all_columns(shuffled, "predictions")
    assert restored.equals(predictions)


def test_a_table_in_several_chunks_is_read_whole():
    home = made_predictions(1.0)
    table = predictions_table("r", [home])
    chunked = pa.concat_tables([table.slice(0, 5), table.slice(5, 40), table.slice(45)])
    (stored,) = answers_of(chunked, "classification")
    assert_same(home, stored)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False),
            st.floats(allow_nan=False, allow_infinity=False),
        ),
        min_size=1,
        max_size=20,
    )
)
def test_any_number_comes_back(pairs):
    truth, value = map(np.array, zip(*pairs, strict=True))
    (stored,) = again([measurements(truth, value, ["p"] * len(pairs))], "regression")
    np.testing.assert_array_equal(stored.truth, truth)
    np.testing.assert_array_equal(stored.value, value)


@pytest.mark.parametrize(
    ("table", "name", "column"),
    [
        (predictions_table("r", [made_predictions(2.0)]), "predictions", "image_id"),
        (metrics_table("r", evaluate([made_predictions(2.0)], n_resamples=9)), "metrics", "role"),
    ],
)
def test_a_table_that_lacks_what_every_row_needs_is_refused(table, name, column):
    with pytest.raises(ValueError, match=f"column {column} has NULL"):
        with_all_columns(table.drop_columns([column]), name)


def test_words_that_no_release_wrote_are_refused():
    answers = predictions_table("r", [made_predictions(2.0)])
    scores = metrics_table("r", evaluate([made_predictions(2.0)], n_resamples=9))
    for table, read in (
        (answers, lambda t: answers_of(t, "classification")),
        (scores, estimates_of),
    ):
        place = table.column_names.index("role")
        strange = table.set_column(place, "role", pa.array(["x"] * len(table)))
        with pytest.raises(ValueError, match="no role 'x'"):
            read(strange)
