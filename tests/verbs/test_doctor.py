"""doctor says what is wrong and what to do, in any state; its bundle holds nothing of patients."""

import importlib
import json
import os
import re
import socket
import sys
import zipfile
from pathlib import Path

import pytest

import embedcache
from embedcache.errors import RunError
from embedcache.files import filesystem, locks
from embedcache.files.locks import locked
from embedcache.testing import write_cohort
from embedcache.verbs.bundle import write_bundle
from embedcache.verbs.doctor import doctor, find_place
from embedcache.verbs.observations import Observation


def looked_at(folder: Path, **options) -> dict[tuple[str, str], Observation]:
    place = find_place(manifest=folder / "data_manifest.csv", offline=True, **options)
    return {(finding.topic, finding.subject): finding for finding in doctor(place).findings}


def problems(findings):
    return {key for key, finding in findings.items() if finding.status == "problem"}


@pytest.fixture(autouse=True)
def _no_torch(monkeypatch):
    devices = (["cpu, 8 GB of memory free"], ["a GPU's driver is here, but torch can use no GPU"])
    monkeypatch.setattr("embedcache.verbs.machine_probes.describe_devices", lambda: devices)


@pytest.fixture
def extracted(project):
    project.extract("pixels")
    return project


def test_nothing_is_wrong_with_a_sound_project_nor_with_an_empty_folder(extracted, tmp_path):
    findings = looked_at(tmp_path)
    assert not problems(findings)
    assert findings["store", "embeddings"].message.startswith("1, ")
    assert findings["store", "format"].message == "version 2, which this release reads"
    assert findings["disk", "locks"].message == "works"
    assert findings["permissions", "store"].message == "mode 0700"
    assert findings["network", "hub"].message == "not asked, for --offline"
    assert findings["devices", "gpu"].status == "warning"
    (tmp_path / "empty").mkdir()
    findings = looked_at(tmp_path / "empty")
    assert not problems(findings)
    assert "manifest folder --root" in findings["manifest", "manifest"].remedy
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_store_that_can_only_be_read_or_not_at_all_is_said(extracted, tmp_path, monkeypatch):
    def refuse(*_: object, **__: object):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(filesystem.tempfile, "TemporaryDirectory", refuse)
    findings = looked_at(tmp_path)
    assert findings["disk", "write"].status == "warning"
    assert "as the store's owner" in findings["disk", "write"].remedy
    monkeypatch.setattr(os, "scandir", refuse)
    assert {("store", "store"), ("locks", "locks")} <= problems(looked_at(tmp_path))


def test_each_damage_is_a_problem_with_a_remedy(extracted, tmp_path):
    store = tmp_path / ".embedcache"
    (store / "embedcache.json").write_text("{")
    (tmp_path / "data_manifest.csv").write_text("a,b\n1,2\n")
    findings = looked_at(tmp_path)
    assert problems(findings) == {("store", "format"), ("manifest", "manifest")}
    assert "verify --repair" in findings["store", "format"].remedy
    (store / "embedcache.json").write_text('{"version": 99}')
    assert ("store", "format") in problems(looked_at(tmp_path))


def test_odd_things_in_the_place_of_store_and_manifest_are_findings(tmp_path):
    (tmp_path / ".embedcache").write_text("a file")
    os.mkfifo(tmp_path / "data_manifest.csv")
    assert problems(looked_at(tmp_path)) == {("store", "store"), ("manifest", "manifest")}
    other = tmp_path / "other"
    other.mkdir()
    (other / "letter.txt").touch()
    findings = looked_at(tmp_path / "nowhere", store=other)
    assert "no store: it holds none of" in findings["store", "store"].message


def test_what_a_disk_cannot_do_is_said(tmp_path, monkeypatch):
    def refuse(*_: object, **__: object):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(filesystem, "_kind", lambda _: "nfs4")
    monkeypatch.setattr(filesystem.shutil, "disk_usage", lambda _: type("", (), {"free": 1e8}))
    monkeypatch.setattr(filesystem, "_clock_ahead", lambda _: 3600.0)
    findings = looked_at(tmp_path)
    for subject, status in {
        "hard links": "warning",
        "file system": "warning",
        "free": "problem",
        "clock": "warning",
    }.items():
        assert findings["disk", subject].status == status
        assert findings["disk", subject].remedy
    assert "+3600.0 s" in findings["disk", "clock"].message


def test_a_held_lock_is_shown_with_its_process(extracted, tmp_path, monkeypatch):
    [folder] = (tmp_path / ".embedcache" / "encoders").iterdir()
    with locked(folder / "LOCK"):
        held = looked_at(tmp_path)["locks", folder.name]
        assert re.fullmatch(rf"held by process {os.getpid()} \(.+\)", held.message)
        monkeypatch.setattr(locks, "_process_of", lambda _: "")
        held = looked_at(tmp_path)["locks", folder.name]
        assert held.message == "held by another machine, or another user's process"
    assert looked_at(tmp_path)["locks", "locks"].message.startswith("0 of ")


def test_what_others_may_read_is_a_warning(extracted, tmp_path):
    (tmp_path / ".embedcache").chmod(0o755)
    (tmp_path / "data_manifest.csv").chmod(0o644)
    findings = looked_at(tmp_path)
    for subject in ("store", "manifest"):
        assert findings["permissions", subject].status == "warning"
        assert "chmod o=" in findings["permissions", subject].remedy


def test_registered_weights_that_changed_are_a_problem_and_missing_ones_are_not(tmp_path):
    folder = Path(os.environ["EMBEDCACHE_WEIGHTS_HOME"]) / "usfm"
    folder.mkdir(parents=True)
    findings = looked_at(tmp_path)
    assert "usfm" in findings["weights", "not here"].message
    (folder / "weights.json").write_text("no document")
    assert ("weights", "usfm") in problems(looked_at(tmp_path))


def test_a_part_that_is_not_installed_ends_no_other_probe(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "embedcache.verbs.store_probes", raising=False)
    monkeypatch.setitem(sys.modules, "embedcache.verbs.artefacts", None)
    findings = looked_at(tmp_path)
    assert "cannot be looked at: ModuleNotFoundError" in findings["store", "store"].message
    assert findings["versions", "python"].status == "ok"
    monkeypatch.undo()
    importlib.import_module("embedcache.verbs.store_probes")


def test_a_probe_that_breaks_is_a_finding(tmp_path, monkeypatch):
    def broken():
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("embedcache.verbs.machine_probes.describe_devices", broken)
    message = looked_at(tmp_path)["devices", "devices"].message
    assert message == "cannot be looked at: ZeroDivisionError: two lines"


def test_the_command_prints_80_columns_and_exits_1_where_there_is_a_problem(
    command, tmp_path, monkeypatch
):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: pytest.fail("asked the network"))
    printed = command("doctor", "--offline")
    assert printed.code == 0, printed.out
    assert printed.out.endswith("0 problems, 1 warnings\n")
    assert max(map(len, printed.out.splitlines())) <= 80
    (tmp_path / "data_manifest.csv").mkdir()
    printed = command("doctor", "--offline", "--json")
    assert printed.code == 1
    findings = json.loads(printed.out)["findings"]
    assert {finding["topic"] for finding in findings} >= {"versions", "disk", "store", "locks"}
    assert [finding["status"] for finding in findings].count("problem") == 1


def test_the_bundle_holds_nothing_of_patients(tmp_path):
    """Every text that stands for a patient, an image, a path, a label or a cohort is a canary."""
    root = tmp_path / "Canary-clinic"
    root.mkdir()
    write_cohort(root, cohorts=("canary-home", "canary-abroad"))
    manifest = root / "data_manifest.csv"
    text = manifest.read_text()
    manifest.write_text(text.replace("\n", ",Canary\n").replace(",Canary\n", ",canary_col\n", 1))
    project = embedcache.open(root)
    project.extract("pixels")
    project.probe("pixels", where="canary_col <> 'Canary Smith'", controls=False, n_resamples=200)
    patients = set(project.images()["patient_id"].to_pylist())
    for encoder in (root / ".embedcache" / "encoders").iterdir():
        (encoder / "canary-note.txt").write_text("x")
    manifest.write_text(manifest.read_text() + "canary,again\n")
    place = find_place(manifest=manifest, offline=True)
    report = doctor(place)
    assert any("anary" in finding.message for finding in report.findings)
    file = tmp_path / "bundle.zip"
    write_bundle(place, report, file)
    with zipfile.ZipFile(file) as bundle:
        content = {name: bundle.read(name).decode() for name in bundle.namelist()}
    together = "\n".join((*content, *content.values()))
    for secret in ("anary", str(tmp_path), *patients):
        assert secret not in together
    run = json.loads(content["runs/0.json"])
    assert run["method"]["probe"] == "logistic"
    assert run["encoder"] == "pixels"
    assert json.loads(content["store.json"])["encoders"]["files"] > 3
    assert file.stat().st_mode & 0o007 == 0
    with pytest.raises(RunError, match="is there already; name a new file"):
        write_bundle(place, report, file)
