"""`embedcache audit`, and the verdict beside the scores of other verbs."""

from __future__ import annotations

import json

import planted
import pytest

PROBE = ("probe", "-m", "pixels", "--folds", "3", "--no-controls")


@pytest.fixture
def rows(tmp_path):
    rows = planted.write(tmp_path, n_patients=12, abroad=4)
    planted.rewrite(tmp_path, rows)
    return rows


def leaking(tmp_path, rows):
    """An image of the other cohort has the bytes of one that trains."""
    (tmp_path / rows[-1]["path"]).write_bytes((tmp_path / rows[0]["path"]).read_bytes())
    planted.rewrite(tmp_path, rows)


def test_a_clean_cohort_is_a_table_a_verdict_and_exit_0(command, rows):
    printed = command("audit", "--folds", "3")
    assert printed.code == 0
    assert printed.out.endswith("32 images of 16 patients: clean\n")
    assert "label         pixels    patients" in printed.out
    assert all(len(line) <= 80 for line in printed.out.splitlines())


def test_a_leak_is_exit_5_in_audit_probe_and_compare(command, tmp_path, rows):
    leaking(tmp_path, rows)
    printed = command("audit", "--folds", "3")
    assert printed.code == 5
    assert "leak: bytes-in-two-cohorts\n  1 test images are byte-identical" in printed.out
    assert all(len(line) <= 80 for line in printed.out.splitlines())
    probed = command(*PROBE)
    assert probed.code == 5
    line = "audit of the split: leaks (1 leak, 1 warning): 1 test images are byte-identical to a"
    assert line in probed.out
    assert "note: 1 test images are byte-identical" in probed.err
    compared = command("compare")
    assert compared.code == 5
    assert line in compared.out
    # The score is stored, with the note.
    document = json.loads(command(*PROBE, "--json").out)
    assert document["audit"]["verdict"] == "leaks"
    assert any("byte-identical" in note for note in document["runs"][0]["run"]["results"]["notes"])
    assert document["runs"][0]["was_cached"]


def test_a_clean_split_is_said_beside_the_score(command, rows):
    printed = command(*PROBE)
    assert printed.code == 0
    assert printed.out.endswith("audit of the split: clean\n")
    compared = command("compare")
    assert (compared.code, compared.out.splitlines()[-1]) == (0, "audit of the split: clean")


def test_learning_curves_have_the_verdict_and_its_exit_code(command, tmp_path, rows):
    curve = ("probe", "-m", "pixels", "--folds", "3", "--patients", "2", "--draws", "1")
    printed = command(*curve)
    assert (printed.code, printed.out.splitlines()[-1]) == (0, "audit of the split: clean")
    rows[5]["patient_id"] = "p2"
    planted.rewrite(tmp_path, rows)
    printed = command(*curve)
    assert printed.code == 5
    assert "audit of the split: leaks (1 leak): 2 names of patients differ" in printed.out


def test_the_json_document_has_every_image(command, tmp_path, rows):
    leaking(tmp_path, rows)
    printed = command("audit", "--folds", "3", "--json", "-q")
    document = json.loads(printed.out)
    assert (printed.code, document["verdict"]) == (5, "leaks")
    finding = document["findings"][0]
    assert finding["n_images"] == 1
    assert finding["images"][0]["image_id"] == rows[-1]["image_id"]
    assert finding["images"][0]["twin"] == rows[0]["image_id"]


def test_no_more_than_twenty_labels_are_shown(command, tmp_path, rows, monkeypatch):
    monkeypatch.setattr("embedcache_cli.audit._SHOWN", 1)
    rows = planted.write(tmp_path, n_patients=20)
    for number in (3, 20):
        rows[number]["label"] = planted.CLASSES[1 - planted.CLASSES.index(rows[number]["label"])]
    planted.rewrite(tmp_path, rows)
    printed = command("audit")
    assert printed.out.count(" looks like ") == 2  # in the message, and of one image
    assert """more: embedcache sql "FROM audit WHERE kind = 'label-error'\"""" in printed.out
    shown = command("audit", "-v").out.count("looks like")
    assert shown >= 3


def test_a_threshold_out_of_range_is_wrong_usage(command, rows):
    assert command("audit", "--threshold", "2").code == 2
