from __future__ import annotations

import random

import pytest

from embedcache.data.folds import (
    assign_folds,
    fold_notes,
    fold_sizes,
    folds_by_value,
    folds_identity,
    read_folds,
    untrained_notes,
)
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


CENTRES = (
    ["P1", "P1", "P2", "P3", "P4", "P5"],
    ["north", "north", "north", "south", "east", "east"],
    ["a", "b", "a", "b", "a", "c"],
)


def test_each_value_of_a_column_is_a_fold_whatever_the_order_of_rows():
    patient, value, label = CENTRES
    table = folds_by_value(patient, value, label, column="center")
    assert table.values == ("east", "north", "south")
    assert table.patients == {"P1": 1, "P2": 1, "P3": 2, "P4": 0, "P5": 0}
    assert [size.value for size in fold_sizes(table, patient, label)] == list(table.values)
    mixed = [column[::-1] for column in CENTRES]
    assert folds_by_value(*mixed, column="center") == table
    others = [
        folds_by_value(patient, value, label, column="site"),
        folds_by_value(patient, [name[0] for name in value], label, column="center"),
    ]
    assert len({table.folds_id, *(other.folds_id for other in others)}) == 3


def test_a_class_that_one_fold_has_alone_is_said():
    patient, value, _ = CENTRES
    label = ["a", "a", "a", "b", "c", "c"]
    table = folds_by_value(patient, value, label, column="center")
    assert untrained_notes(table, patient, label) == [
        "class 'a' has its 2 patients in one fold, which is trained without it",
        "class 'c' has its 2 patients in one fold, which is trained without it",
    ]


@pytest.mark.parametrize(
    ("place", "name", "error", "message"),
    [
        (3, "", RunError, "1 of 6 training images have no 'center' .* or leave them out with --w"),
        (
            1,
            "south",
            LeakageError,
            r"1 of 5 patients have images of two or more values of 'center' \(of the first, 1 of "
            r"'north' and 1 of 'south'\); one patient belongs to one fold: mend the column",
        ),
    ],
)
def test_a_column_that_tears_a_patient_or_has_a_gap_is_refused(place, name, error, message):
    patient, value, label = CENTRES
    value = [*value[:place], name, *value[place + 1 :]]
    with pytest.raises(error, match=message) as raised:
        folds_by_value(patient, value, label, column="center")
    assert "P1" not in str(raised.value)  # a message may be shown to anyone


def test_a_column_of_one_value_or_a_cohort_of_one_class_is_refused():
    patient, value, label = CENTRES
    with pytest.raises(RunError, match="every training image has the 'center' 'x'; --folds-by n"):
        folds_by_value(patient, ["x"] * 6, label, column="center")
    with pytest.raises(RunError, match="one class only .'a'.; a probe needs two"):
        folds_by_value(patient, value, ["a"] * 6, column="center")
