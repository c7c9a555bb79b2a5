"""What the table of images tells: equal images, patients on two sides, spellings, rare classes."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from embedcache.audit.finding import AuditFinding, Scene, verdict, verdict_line
from embedcache.audit.identical import cheap_findings, identical

# Name, patient, label, cohort, digest and fold (-1: only tested) of each image; nothing is wrong.
CLEAN = [
    ("a", "P1", "x", "home", "1", 0),
    ("b", "P1", "y", "home", "2", 0),
    ("c", "P2", "x", "home", "3", 1),
    ("d", "P2", "y", "home", "4", 1),
    ("e", "Q1", "x", "away", "5", -1),
    ("f", "Q2", "y", "away", "6", -1),
]


def scene(*changes: tuple[str, dict]) -> Scene:
    """The clean scene with some cells changed, by name of the image."""
    names = ("image_id", "patient_id", "label", "cohort", "key", "fold")
    rows = [dict(zip(names, row, strict=True)) for row in CLEAN]
    for image, cells in changes:
        next(row for row in rows if row["image_id"] == image).update(cells)
    columns = {name: tuple(row[name] for row in rows) for name in names}
    return Scene(**{**columns, "fold": np.array(columns["fold"])})


def found(*changes, n_folds=2, **settings) -> dict[tuple[str, str], AuditFinding]:
    findings = cheap_findings(scene(*changes), n_folds, "classification", **settings)
    return {(finding.kind, finding.severity): finding for finding in findings}


def test_a_clean_table_has_no_findings():
    assert found() == {}
    assert verdict([]) == "clean"
    assert verdict_line([]) == "audit of the split: clean"


def test_a_test_image_with_the_bytes_of_a_training_image_is_a_leak():
    [(key, finding)] = found(("e", {"key": "1"})).items()
    assert key == ("bytes-in-two-cohorts", "leak")
    assert (finding.images, finding.suspects[0].twin) == (("e",), "a")
    assert finding.message.startswith("1 test images are byte-identical to a training image, first")


@pytest.mark.parametrize("fold", [0, 1])
def test_a_training_image_of_two_patients_is_a_leak_whatever_their_folds(fold):
    changes = ("c", {"key": "1", "fold": fold}), ("d", {"fold": fold})
    [(key, finding)] = found(*changes).items()
    assert key == ("bytes-under-two-patients", "leak")
    assert [(s.image_id, s.twin) for s in finding.suspects] == [("a", "c"), ("c", "a")]


def test_a_test_image_of_two_patients_is_a_warning():
    changes = ("e", {"label": "y"}), ("f", {"key": "5"})
    assert list(found(*changes)) == [("bytes-under-two-patients", "warning")]


def test_an_image_with_two_labels_is_a_warning():
    [(key, finding)] = found(("b", {"key": "1"})).items()
    assert key == ("bytes-under-two-labels", "warning")
    assert finding.images == ("a", "b")


def test_an_image_that_nobody_knows_is_equal_to_none():
    assert found(("a", {"key": None}), ("e", {"key": None})) == {}


def test_equal_pixels_are_told_only_where_equal_bytes_were_not():
    changed = scene(("e", {"key": "1"}))
    before = cheap_findings(changed, 2, "classification")
    assert [*identical(changed, ["1", "2", "3", "4", "1", "6"], "pixels", before)] == []
    [finding] = identical(changed, ["1", "2", "3", "4", "1", "2"], "pixels", before)
    assert (finding.kind, finding.images) == ("pixels-in-two-cohorts", ("f",))
    assert "pixel-identical" in finding.message


def test_a_patient_who_trains_and_tests_is_a_leak():
    [(key, finding)] = found(("e", {"patient_id": "P1"})).items()
    assert key == ("patient-in-two-cohorts", "leak")
    assert finding.images == ("a", "b", "e")
    assert "P1" not in finding.message
    shown = found(("e", {"patient_id": "P1"}), show_patients=True)
    assert "'P1'" in shown["patient-in-two-cohorts", "leak"].message


@pytest.mark.parametrize("twin", ["p1", "P01", "P1\u200b", "P-1"])
def test_a_patient_spelt_two_ways_is_a_leak_where_one_of_them_trains(twin):
    [(key, finding)] = found(("e", {"patient_id": twin})).items()
    assert key == ("patient-spelling", "leak")
    assert "those of images 'a', 'e'" in finding.message
    names = found(("e", {"patient_id": twin}), show_patients=True)["patient-spelling", "leak"]
    assert "P1" in names.message


def test_unicode_forms_of_two_test_patients_are_a_warning():
    name = "Zo\u00eb"
    changes = (
        ("e", {"patient_id": name}),
        ("f", {"patient_id": unicodedata.normalize("NFD", name)}),
    )
    assert list(found(*changes)) == [("patient-spelling", "warning")]


def test_a_class_of_fewer_patients_than_folds_is_a_warning():
    [(key, finding)] = found(("d", {"label": "x"})).items()
    assert key == ("rare-class", "warning")
    assert finding.images == ("b",)
    assert "first 'y' with 1" in finding.message


def test_rare_numbers_are_no_rare_classes():
    assert cheap_findings(scene(("d", {"label": "x"})), 2, "regression") == []


def test_the_gravest_finding_gives_the_verdict():
    findings = list(found(("b", {"key": "1"}), ("e", {"key": "3"})).values())
    assert verdict(findings) == "leaks"
    line = verdict_line(findings)
    assert line.startswith("audit of the split: leaks (1 leak, 1 warning): 1 test images are byte-")
