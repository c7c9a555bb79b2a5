"""Shortcuts that facts of an image offer, labels that other images contradict, split by image."""

from __future__ import annotations

import numpy as np
import pytest
from made_cohorts import embeddings, folds_of

import embedcache.audit.shortcuts as shortcuts_module
from embedcache.audit.finding import Scene
from embedcache.audit.labels import confident_class, likely_label_errors
from embedcache.audit.pictures import PictureFacts
from embedcache.audit.probing import (
    MOST_FEATURES,
    fewer_features,
    image_folds,
    inflation,
    out_of_fold,
    predictions,
    score_of,
)
from embedcache.audit.shortcuts import (
    METADATA,
    facts_of,
    label_from_facts,
    naive_bayes,
    picture_columns,
    shortcuts,
)

N_PATIENTS = 30


def study(device_of_class=False, seed=0, column="device"):
    """Facts, classes, folds and patients of 90 images; the device is a patient's or a class's."""
    chance = np.random.default_rng(seed)
    patient = np.repeat(np.arange(N_PATIENTS), 3)
    y = chance.permutation(np.arange(N_PATIENTS) % 3)[patient]
    device = y if device_of_class else chance.integers(0, 3, N_PATIENTS)[patient]
    facts = facts_of({column: [f"d{d}" for d in device]}, "label")
    return facts, y, patient % 5, patient


def found(facts, y, fold, patient):
    told = label_from_facts(facts, y, fold, patient)
    return list(shortcuts(facts, told, "label", y, ("a", "b", "c"), patient, 0.9)), told


@pytest.mark.parametrize("seed", range(5))
def test_a_device_that_says_nothing_of_the_class_is_no_shortcut(seed):
    findings, told = found(*study(seed=seed))
    assert findings == []
    assert told["device"].score == told[METADATA].score


def test_a_device_that_is_the_class_is_a_shortcut():
    findings, told = found(*study(device_of_class=True))
    assert [(f.kind, f.severity) for f in findings] == [("shortcut", "warning")] * 2
    assert told["device"].score == 1
    assert told["device"].p <= 0.02
    message = findings[0].message
    assert message.startswith("'device' alone tells 'label' with macro F1 1.000 (chance 0.")
    assert "embeddings 0.900): 100% of 'a' come from d0, which holds hardly any other" in message


def test_a_column_that_may_be_the_label_in_disguise_is_a_note():
    findings, told = found(*study(device_of_class=True, column="plane"))
    assert [finding.severity for finding in findings] == ["note"]
    assert METADATA not in told


def test_columns_that_name_images_patients_or_labels_are_no_facts():
    few = ["0", "1"] * 45
    columns = dict.fromkeys(("patient_id", "label", "view", "cohort", "device"), few)
    columns |= {"constant": ["c"] * 90, "name": [str(i) for i in range(90)]}
    assert [fact.name for fact in facts_of(columns, "view")] == ["device"]


def test_measures_of_pictures_become_columns_of_few_values():
    facts = [
        PictureFacts("", "", *size, 0.0, marks)
        for size, marks in (((8, 6), 0.0), ((8, 6), 0.1), ((9, 9), 0.3))
    ]
    columns = picture_columns([*facts, None])
    assert columns["image size"] == ["8x6", "8x6", "9x9", ""]
    assert columns["coloured pixels"] == ["none"] * 3 + [""]
    assert columns["burnt-in marks"] == ["none", "few", "many", ""]


def test_facts_that_chance_explains_are_soon_decided(monkeypatch):
    facts, y, fold, patient = study()
    n_counted = 0

    def count(*arguments):
        nonlocal n_counted
        n_counted += 1
        return link(*arguments)

    link = shortcuts_module._link
    monkeypatch.setattr(shortcuts_module, "_link", count)
    assert label_from_facts(facts, y, fold, patient)["device"].p > shortcuts_module.ALPHA
    assert n_counted < shortcuts_module._DRAWS / 4


def test_a_value_that_only_the_tested_fold_has_speaks_for_nothing():
    facts = facts_of({"device": ["a"] * 6 + ["b"] * 3}, "label")
    y, fold = np.array([0, 0, 1, 0, 0, 1, 1, 1, 1]), np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    predicted = naive_bayes(facts, y, fold)
    assert set(predicted[6:]) == {1}  # the commonest class, since nothing is known of 'b'


def probed(train, label=None):
    """Predictions on folds of patients and on folds of images."""
    fold = folds_of(train).of(train.patient_id)
    label = train.label if label is None else label
    classes = sorted(set(label))
    y = np.searchsorted(classes, label)
    columns = (train.image_id, train.patient_id, tuple(label), train.cohort, train.image_id)
    scene, rows = Scene(*columns, fold), np.arange(len(train))
    return [
        predictions(scene, rows, classes, y, out_of_fold(train.X, y, part))
        for part in (fold, image_folds(y, 5))
    ]


def test_flipped_labels_are_among_the_suspects_and_a_clean_cohort_has_none():
    train = embeddings(n_patients=40, dim=8, spread=0.4)
    assert likely_label_errors(*probed(train)) == []
    label, flipped = list(train.label), [3, 30, 71]
    for row in flipped:
        label[row] = "abc"[("abc".index(label[row]) + 1) % 3]
    [finding] = likely_label_errors(*probed(train, label))
    assert (finding.kind, finding.severity) == ("label-error", "note")
    assert {train.image_id[row] for row in flipped} <= set(finding.images)
    suspect = next(s for s in finding.suspects if s.image_id == train.image_id[3])
    assert (suspect.label, suspect.predicted) == (label[3], train.label[3])
    assert suspect.margin > 0.5
    assert len(finding.suspects) < 8


def test_a_class_is_confident_where_its_own_images_are_so_on_average():
    probability = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.85, 0.15], [0.5, 0.5]])
    y = np.array([0, 0, 1, 1, 1])  # usual: 0.8 for class 0, 0.483 for class 1
    assert confident_class(probability, y).tolist() == [0, -1, 1, 0, 1]


def test_a_split_by_image_inflates_where_frames_of_a_patient_are_alike():
    chance = np.random.default_rng(0)
    train = embeddings(n_patients=60, dim=100, spread=0.1)
    own = {name: chance.normal(0, 4, 100) for name in sorted(set(train.patient_id))}
    X = np.stack([own[name] for name in train.patient_id]) + chance.normal(0, 0.1, train.X.shape)
    classes = dict(zip(own, chance.permutation(list("ab") * 30).tolist(), strict=True))
    label = [classes[name] for name in train.patient_id]
    patients = type(train)(**{**_fields(train), "X": X.astype(np.float32), "label": tuple(label)})
    by_patient, by_image = probed(patients)
    assert score_of("label", "e", by_patient).value < 0.75
    [finding] = inflation("e", by_patient, by_image)
    assert (finding.kind, finding.severity) == ("image-split-inflates", "note")
    assert inflation("e", by_image, by_image) == []


def _fields(train):
    return {name: getattr(train, name) for name in train.__dataclass_fields__}


def test_folds_of_images_have_every_class_in_equal_shares():
    y = np.array([0] * 50 + [1] * 20)
    fold = image_folds(y, 5)
    assert np.bincount(fold[y == 0]).tolist() == [10] * 5
    assert np.bincount(fold[y == 1]).tolist() == [4] * 5


def test_wide_embeddings_keep_their_distances_in_fewer_features():
    X = np.random.default_rng(0).normal(size=(20, 1500)).astype(np.float32)
    few = fewer_features(X)
    assert few.shape == (20, MOST_FEATURES)
    wide, narrow = (np.linalg.norm(rows[0] - rows[1:], axis=1) for rows in (X, few))
    assert np.allclose(narrow / wide * np.sqrt(1500 / MOST_FEATURES), 1, atol=0.2)
    assert fewer_features(X[:, :8]).shape == (20, 8)
