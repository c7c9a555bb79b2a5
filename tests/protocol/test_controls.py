"""Features that hold no picture, and labels that mean nothing."""

from __future__ import annotations

import numpy as np
import pytest
from made_cohorts import TASKS, embeddings, of_task, predicted

from embedcache.protocol.controls import majority_features, metadata_features, shuffled_labels
from embedcache.protocol.nested import fit_probe


def test_shuffled_labels_keep_counts_and_leave_their_images():
    train = embeddings(30)
    label = shuffled_labels(train.patient_id, train.label, seed=0)
    assert sorted(label) == sorted(train.label)
    assert label != train.label
    assert label != shuffled_labels(train.patient_id, train.label, seed=1)
    # All of a patient's labels stay together, in order, on neighbours.
    assert "".join(train.label[:3]) in "".join(label)


@pytest.mark.parametrize("task", TASKS)
def test_a_feature_that_never_varies_predicts_the_share_or_the_mean_of_a_fold(task):
    train, folds, _ = of_task(task)
    plain = type(train)(
        "majority", "majority", majority_features(len(train)), train.image_id, train.patient_id,
        train.cohort, train.label,
    )  # fmt: skip
    (inside,) = fit_probe(plain, folds, task=task).answers
    values = predicted(inside)
    for number in range(5):
        rows = values[inside.fold == number]
        assert np.ptp(rows, axis=0) == pytest.approx(0, abs=1e-9)


def test_metadata_is_one_column_a_device_and_a_size_of_the_training_images():
    device = ["x", "y", "x", "z", ""]
    sizes = np.array([[8, 6], [8, 6], [4, 4], [2, 2], [2, 2]])
    features = metadata_features([0, 1, 2], device=device, sizes=sizes)
    by_hand = [
        [1, 0, 1, 0, np.log(8), np.log(6), np.log(8 / 6)],
        [0, 1, 1, 0, np.log(8), np.log(6), np.log(8 / 6)],
        [1, 0, 0, 1, np.log(4), np.log(4), 0],
        [0, 0, 0, 0, np.log(2), np.log(2), 0],
        [0, 0, 0, 0, np.log(2), np.log(2), 0],
    ]
    assert features == pytest.approx(np.array(by_hand))
    assert features.dtype == np.float32


def test_metadata_leaves_out_sizes_unless_all_are_known():
    sizes = np.array([[8, 6], [0, 0]])
    assert metadata_features([0, 1], device=["x", "y"], sizes=sizes).shape == (2, 2)
    assert metadata_features([0, 1], sizes=sizes).shape == (2, 0)
    assert metadata_features([0, 1], device=["x", "y"]).tolist() == [[1, 0], [0, 1]]
