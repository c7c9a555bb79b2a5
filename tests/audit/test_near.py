"""Near-duplicates: neighbours, thresholds, and what every measure must agree on."""

from __future__ import annotations

import numpy as np
import pytest

from embedcache.audit.finding import Scene
from embedcache.audit.near import RATIOS, Threshold, calibrate, near_duplicates, neighbours
from embedcache.audit.pictures import (
    PictureFacts,
    difference_hash,
    hash_distance,
    picture_facts,
)


def cohort(n_patients=40, n_images=3, dim=12, seed=0):
    """Rows of patients whose frames are alike, and the patients' numbers."""
    chance = np.random.default_rng(seed)
    centres = chance.normal(size=(n_patients, dim))
    patient = np.repeat(np.arange(n_patients), n_images)
    X = centres[patient] + chance.normal(0, 0.05, (len(patient), dim))
    return X.astype(np.float32), patient


def scene_of(patient, n_tested=0):
    n = len(patient)
    names = tuple(f"i{number}" for number in range(n))
    fold = np.where(np.arange(n) < n - n_tested, patient % 5, -1)
    return Scene(names, tuple(f"p{p}" for p in patient), ("x",) * n, ("c",) * n, names, fold)


def test_neighbours_are_those_of_a_plain_loop(monkeypatch):
    X, patient = cohort(n_patients=9)
    label = np.arange(len(X)) % 2
    monkeypatch.setattr("embedcache.audit.near._BLOCK_CELLS", 50)  # a row or two at a time
    shuffled = np.random.default_rng(1).permutation(len(X))
    X, patient, label = X[shuffled], patient[shuffled], label[shuffled]
    near = neighbours(X, patient, label)
    Z = X - X.mean(axis=1, keepdims=True)
    Z = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    Z = Z - Z.mean(axis=0)
    Z = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    similarity = Z @ Z.T
    for i in range(len(X)):
        own = [
            similarity[i, j]
            for j in range(len(X))
            if j != i and patient[j] == patient[i] and label[j] == label[i]
        ]
        others = {p: similarity[i, patient == p].max() for p in set(patient) if p != patient[i]}
        best = max(others, key=others.get)
        assert patient[near.other[i]] == best
        assert similarity[i, near.other[i]] == pytest.approx(others[best], abs=1e-6)
        assert near.reference[i] == pytest.approx(sorted(others.values())[-3], abs=1e-6)
        assert near.own[i] == pytest.approx(max(own), abs=1e-6) if own else np.isnan(near.own[i])


def test_the_threshold_is_measured_on_frames_of_one_patient():
    X, patient = cohort()
    threshold = calibrate(neighbours(X, patient, np.zeros(len(X), int)), 1)
    assert threshold.n_pairs == len(X)
    assert 0.98 < threshold.similarity < 1
    assert RATIOS[0] <= threshold.ratio <= RATIOS[1]
    assert f"measured on {len(X)} images" in str(threshold)


def test_without_two_images_of_a_patient_the_strictest_ratio_holds():
    X, patient = cohort(n_images=1)
    threshold = calibrate(neighbours(X, patient, np.zeros(len(X), int)), 1)
    assert threshold == Threshold(-1.0, RATIOS[0], 0)
    assert "too few patients" in str(threshold)


def picture(number=0, digits=0):
    return PictureFacts(f"pixels-{number}", f"{digits:016x}", 64, 64, 0.0, 0.0)


def planted(n_tested=0, facts=None, agree=True):
    X, patient = cohort()
    X = np.concatenate([X, X[:1] + np.float32(0.001)])
    patient = np.append(patient, 99)
    label = np.zeros(len(X), int)
    near = {"first": neighbours(X, patient, label)}
    if not agree:
        near["second"] = neighbours(cohort(seed=3)[0].repeat(2, axis=0)[: len(X)], patient, label)
    thresholds = {name: calibrate(by_encoder, 1) for name, by_encoder in near.items()}
    scene = scene_of(patient, n_tested)
    return near_duplicates(scene, near, thresholds, facts or list(map(picture, range(len(X)))))


def test_a_repeated_image_of_another_patient_is_the_one_that_is_listed():
    [finding] = planted()
    assert (finding.kind, finding.severity) == ("near-duplicate", "leak")
    assert {(s.image_id, s.twin) for s in finding.suspects} == {("i0", "i120"), ("i120", "i0")}
    assert finding.suspects[0].similarity > 0.999


def test_one_that_is_only_tested_is_a_warning():
    [finding] = planted(n_tested=121)
    assert finding.severity == "warning"
    assert "count twice" in finding.message


def test_the_hash_must_agree():
    facts = list(map(picture, range(121)))
    facts[0] = picture(digits=0xF)
    assert len(planted(facts=facts)) == 1
    facts[0] = picture(digits=0x1F)  # one bit too many beside one encoder alone
    assert planted(facts=facts) == []
    # Where one picture is not here, the hash still decides on the others.
    assert planted(facts=[*facts[:60], None, *facts[61:]]) == []
    assert len(planted(facts=[None, *facts[1:]])[0].suspects) == 2


def test_every_encoder_must_agree():
    assert planted(agree=False) == []


def test_equal_pixels_are_no_near_duplicates():
    facts = list(map(picture, range(120)))
    assert planted(facts=[*facts, facts[0]]) == []


def test_the_hash_sees_neither_brightness_nor_format():
    y, x = np.mgrid[0:48, 0:64]
    grey = (100 + 60 * np.sin(x / 7) * np.cos(y / 5)).astype(np.float32)
    assert difference_hash(grey) == difference_hash(grey * 0.8 + 30)
    other = (100 + 60 * np.sin(x / 5 + 1) * np.cos(y / 9)).astype(np.float32)
    pair = [np.array([difference_hash(g)], np.uint64) for g in (grey, other)]
    assert hash_distance(*pair)[0] > 8
    assert hash_distance(np.array([7], np.uint64), np.array([8], np.uint64)).tolist() == [4]


def test_pictures_smaller_than_the_hash_have_one():
    facts = picture_facts(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert (facts.width, facts.height, len(facts.hash)) == (3, 2, 16)


def test_marks_and_colour_are_measured():
    plain = np.full((40, 60), 90, np.uint8)
    assert (picture_facts(plain).marks, picture_facts(plain).coloured) == (0, 0)
    text = plain.copy()
    text[1:3, 2:30:2], text[1:3, 3:30:2] = 255, 0
    assert picture_facts(text).marks > 0.01
    middle = plain.copy()
    middle[20, 10:30:2], middle[20, 11:30:2] = 255, 0
    assert picture_facts(middle).marks == 0
    colour = np.stack([plain, plain, plain], axis=2)
    colour[:20, :30, 0] = 200
    assert picture_facts(colour).coloured == 0.25
    assert picture_facts(colour).pixels != picture_facts(plain).pixels
