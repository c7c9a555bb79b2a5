from __future__ import annotations

import random

import pytest

from embedcache.data.folds import assign_folds, fold_notes, fold_sizes, folds_identity, read_folds
from embedcache.errors import LeakageError, RunError


def cohort(n_patients=20, seed=0):
    chance = random.Random(seed)
    rows = []
    for number in range(n_patients):
        rows += [(f"P{number}", chance.choice("abc")) for _ in range(chance.randint(1, 5))]
    return [list(column) for column in zip(*rows, strict=True)]


def test_every_patient_is_in_one_fold_and_every_fold_tests_someone():
    patient, label = cohort()
    table = assign_folds(patient, label)
    assert set(table.patients) == set(patient)
    assert set(table.patients.values()) == set(range(5))
    sizes = fold_sizes(table, patient, label)
    assert sum(size.n_images for size in sizes) == len(patient)
    assert sum(size.n_patients for size in sizes) == 20
    assert sum(sum(size.classes.values()) for size in sizes) == len(patient)


def test_classes_are_spread_over_the_folds():
    patient = [f"P{number}" for number in range(50)]
    label = ["a"] * 25 + ["b"] * 25
    for size in fold_sizes(assign_folds(patient, label), patient, label):
        assert size.classes == {"a": 5, "b": 5}


def test_neither_row_order_nor_anything_but_seed_and_number_changes_them():
    patient, label = cohort()
    rows = list(zip(patient, label, strict=True))
    random.Random(1).shuffle(rows)
    mixed = [list(column) for column in zip(*rows, strict=True)]
    assert assign_folds(*mixed) == assign_folds(patient, label)
    assert folds_identity(*mixed, 5, 0) == folds_identity(patient, label, 5, 0)
    others = [
        assign_folds(patient, label, seed=1),
        assign_folds(patient, label, n_folds=4),
        assign_folds(patient, ["a"] * 5 + label[5:]),
    ]
    assert len({other.folds_id for other in others} | {assign_folds(patient, label).folds_id}) == 4


def test_a_rare_class_is_said_not_hidden():
    patient = [f"P{number}" for number in range(20)]
    label = ["common"] * 17 + ["rare"] * 2 + ["single"]
    notes = assign_folds(patient, label).notes
    assert any("class 'rare' has 2 patients, fewer than 5 folds" in note for note in notes)
    assert any("'single' has 1 patients" in n and "trained without it" in n for n in notes)


def test_a_dominating_patient_is_said():
    patient = ["big"] * 30 + [f"P{number}" for number in range(20)]
    (note,) = fold_notes(patient, ["a"] * 50, 5)
    assert "one patient holds 60% of class 'a' (30 images)" in note
    assert "big" not in note  # a note may be shown to anyone


@pytest.mark.parametrize(
    ("patient", "label", "n_folds", "message"),
    [
        (["P1", "P2"], ["a", "b"], 5, "2 patients cannot be split into 5 folds; pass --folds"),
        (["P1", "P2"], ["a", "b"], 1, "2 patients cannot be split into 1 folds"),
        (["P1", "P2", "P3"], ["a", "a", "a"], 2, "one class only .'a'.; a probe needs two"),
    ],
)
def test_what_cannot_be_split_is_refused(patient, label, n_folds, message):
    with pytest.raises(RunError, match=message):
        assign_folds(patient, label, n_folds=n_folds)


def test_a_table_from_a_file_is_taken_as_it_is(tmp_path):
    file = tmp_path / "folds.csv"
    file.write_text("patient_id,fold\nP1,1\nP2,2\nP3,3\nP1,1\n")
    table = read_folds(file)
    assert table.patients == {"P1": 0, "P2": 1, "P3": 2}
    assert table.of(["P3", "P1"]).tolist() == [2, 0]
    with pytest.raises(RunError, match="1 patients are in no fold of table .*; make a"):
        table.of(["P1", "P9"])


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "patient_id,fold\nP1,0\nP1,1\n",
            LeakageError,
            "the patient of row . stands in fold 0 and in fold 1",
        ),
        ("patient_id,fold\nP1,0\nP2,2\n", RunError, "numbered 0, 1, ... without a gap"),
        ("patient_id,fold\nP1,0\n", RunError, "two or more"),
        ("patient_id,fold\nP1,x\n", RunError, "expected CSV columns 'patient_id' and 'fold'"),
        ("patient,fold\nP1,0\n", RunError, "expected CSV columns 'patient_id' and 'fold'"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path, text, error, message):
    (tmp_path / "folds.csv").write_text(text)
    with pytest.raises(error, match=message):
        read_folds(tmp_path / "folds.csv")
    with pytest.raises(
        RunError, match=f"{tmp_path}: no fold table: a folder, not a file; expected a CSV"
    ):
        read_folds(tmp_path)
    with pytest.raises(RunError, match="no fold table: No such file"):
        read_folds(tmp_path / "nowhere.csv")
