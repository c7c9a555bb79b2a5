"""A number, or several labels, in place of one class."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from made_cohorts import embeddings, folds_of, of_task

from embedcache.errors import RunError
from embedcache.protocol.nested import fit_probe
from embedcache.protocol.tasks import strata


def test_a_number_is_predicted_in_its_unit():
    train, table, away = of_task("regression")
    result = fit_probe(train, table, [away], task="regression")
    inside, outside = result.answers
    assert np.abs(inside.value - inside.truth).mean() < 0.6 * inside.truth.std()
    assert np.abs(outside.value - outside.truth).mean() < 0.6 * outside.truth.std()
    assert (inside.fold == table.of(train.patient_id)).all()
    assert len(result.choices["alpha"]) == 5


def test_several_labels_are_predicted_each_for_itself():
    train, table, _ = of_task("multilabel")
    (inside,) = fit_probe(train, table, task="multilabel").answers
    assert inside.names == ("x", "y")
    assert (inside.called() == inside.truth).mean() > 0.85


def test_labels_that_are_none_of_the_task_are_named():
    train = embeddings()
    with pytest.raises(RunError, match="is no number; leave it out with --where"):
        strata("regression", train.label)
    with pytest.raises(RunError, match="every cell is '-'"):
        fit_probe(replace(train, label=("-",) * len(train)), folds_of(train), task="multilabel")


def test_strata_are_fifths_of_a_number_and_the_rarest_of_labels():
    assert strata("regression", ["5", "1", "3", "2", "4"]) == [
        f"fifth {n}" for n in (5, 1, 3, 2, 4)
    ]
    assert strata("multilabel", ["a|b", "a", "-", "a"]) == ["b", "a", "-", "a"]


def test_equal_numbers_share_a_stratum():
    values = [str(value) for value in np.random.default_rng(0).integers(4, size=60)]
    order = np.random.default_rng(1).permutation(60)
    one = strata("regression", values)
    other = strata("regression", [values[i] for i in order])
    assert [one[i] for i in order] == other


def test_a_number_that_never_varies_is_refused():
    train = embeddings()
    with pytest.raises(RunError, match="every training label is 3; there is nothing to learn"):
        fit_probe(replace(train, label=("3",) * len(train)), folds_of(train), task="regression")


@pytest.mark.parametrize(
    ("task", "label", "match"),
    [
        ("classification", "d", "external label 'd' is none of a, b, c"),
        ("regression", "old", "label 'old' is no number; leave it out with --where"),
        ("multilabel", "x|q", "external label 'q' is none of x, y"),
        ("multilabel", "x||y", "is no list of labels"),
    ],
)
def test_an_external_label_that_is_none_of_the_question_is_named(task, label, match):
    train, folds, away = of_task(task)
    away = replace(away, label=(label, *away.label[1:]))
    with pytest.raises(RunError, match=match):
        fit_probe(train, folds, [away], task=task)


def test_strata_of_classes_are_the_classes():
    assert strata("classification", ["b", "a"]) == ["b", "a"]
