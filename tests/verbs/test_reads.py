"""What one command reads: the manifest, each store, and each run's record once."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest
from edits import add_column

import embedcache
from embedcache.data import image_files
from embedcache.data import manifest as manifest_module
from embedcache.extract import flow
from embedcache.files.backend import LocalBackend
from embedcache.runs import files as run_files
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import write_cohort
from embedcache.verbs import session as session_module

FEW = {"n_resamples": 100, "folds": 3}


class Reads(Counter):
    """How often each file was read, by its name in the store."""

    def count(self, function, name_of=str):
        def counted(first, *arguments, **settings):
            self[name_of(first)] += 1
            return function(first, *arguments, **settings)

        return counted


@pytest.fixture
def reads(monkeypatch):
    """Counts of manifests parsed, stores opened, records and tables of runs read."""
    counts = {name: Reads() for name in ("manifest", "store", "record", "table", "encoder")}
    monkeypatch.setattr(
        session_module, "read_manifest", counts["manifest"].count(manifest_module.read_manifest)
    )
    initial = EmbeddingStore.__init__

    def opened(self, folder):
        counts["store"][folder.name] += 1
        initial(self, folder)

    monkeypatch.setattr(EmbeddingStore, "__init__", opened)
    for name, kind in (("read_document", "record"), ("parse_table", "table")):
        function = getattr(run_files, name)
        name_of = (lambda file: file.parent.name) if kind == "record" else (lambda data: "all")
        monkeypatch.setattr(run_files, name, counts[kind].count(function, name_of))
    read = LocalBackend.read

    def read_file(self, name, *arguments, **settings):
        # To read no bytes is to ask whether there are any.
        if name.endswith("/encoder.json") and arguments != (0, 0):
            counts["encoder"][name] += 1
        return read(self, name, *arguments, **settings)

    monkeypatch.setattr(LocalBackend, "read", read_file)
    return counts


@pytest.fixture
def project(tmp_path):
    """Two cohorts of a few small images, encoded by three models without weights of their own."""
    write_cohort(tmp_path, n_patients=8, n_images=1, size=8, cohorts=("home", "abroad"))
    project = embedcache.open(tmp_path)
    project.extract("pixels")
    project.extract("pixels", precision="bf16")
    project.extract("pixels", preprocess="pad-square")
    return project


def clear(counts):
    for reads in counts.values():
        reads.clear()


def test_an_extraction_parses_the_manifest_and_opens_each_store_once(project, reads):
    shutil.rmtree(project.workspace.store)
    project.extract("pixels")
    assert list(reads["manifest"].values()) == [1]
    assert list(reads["store"].values()) == [1]
    assert reads["record"] == reads["table"] == {}
    clear(reads)
    project.extract("pixels")
    assert list(reads["manifest"].values()) == [1]
    assert set(reads["store"].values()) <= {1}


def test_an_extraction_reads_each_image_once_for_all_models(project, monkeypatch):
    shutil.rmtree(project.workspace.store)
    monkeypatch.setattr("embedcache.files.digests.RACY_WINDOW_NS", -(10**18))  # images are old
    read = Reads()
    for module in (flow, image_files):
        monkeypatch.setattr(module, "read_and_hash", read.count(image_files.read_and_hash))
    project.extract(["pixels", "random:timm:test_resnet"])
    assert len(read) == len(project.images())
    assert set(read.values()) == {1}


def test_probes_of_all_models_with_controls_read_each_thing_once(project, reads):
    report = project.probe("all", controls=True, **FEW)
    assert len(report) == 3
    assert len(report.controls) == 3
    assert report.comparison is not None
    assert list(reads["manifest"].values()) == [1]
    assert len(reads["store"]) == 3
    assert set(reads["store"].values()) == {1}
    names = {run.run_id for run in (*report.runs, *report.controls)}
    assert set(reads["record"]) == names
    assert set(reads["record"].values()) == {1}


def test_probes_that_are_found_again_read_each_record_once(project, reads):
    project.probe("all", controls=True, **FEW)
    clear(reads)
    report = project.probe("all", controls=True, **FEW)
    assert all(run.was_cached for run in (*report.runs, *report.controls))
    assert list(reads["manifest"].values()) == [1]
    assert set(reads["store"].values()) == {1}
    assert set(reads["record"].values()) == {1}
    assert len(reads["record"]) == 6
    assert reads["table"]["all"] == 2 * 6  # predictions and scores, and nothing twice


def test_the_comparison_of_a_probe_reads_no_file_of_a_run(project, reads, monkeypatch):
    project.probe("all", **FEW)
    read = []
    for name in ("record", "answers", "estimates", "table"):
        function = getattr(run_files.RunFiles, name)
        monkeypatch.setattr(
            run_files.RunFiles,
            name,
            lambda self, *arguments, function=function, name=name: (
                read.append(name) or function(self, *arguments)
            ),
        )
    compare = embedcache.verbs.probe.compare_outcomes
    during = []

    def compared(*arguments):
        before = len(read)
        report = compare(*arguments)
        during.append(read[before:])
        return report

    monkeypatch.setattr("embedcache.verbs.probe.compare_outcomes", compared)
    project.probe("all", controls=True, **FEW)
    assert during == [[]]


@pytest.mark.parametrize("verb", ["status", "verify", "compare", "gc", "folds", "images", "index"])
def test_no_verb_parses_the_manifest_or_reads_a_record_twice(project, reads, verb):
    project.probe("all", **FEW)
    add_column(Path(project.workspace.data_root), "note", lambda lines: ["x"] * len(lines))
    clear(reads)
    options = {"compare": {"n_resamples": 100}, "folds": {"folds": 3}}.get(verb, {})
    getattr(project, verb)(**options)
    for name in ("manifest", "store", "record"):
        assert set(reads[name].values()) <= {1}, (name, reads[name])


@pytest.mark.parametrize("verb", ["probe", "extract", "plan", "status", "compare", "gc", "verify"])
def test_an_encoder_is_read_once_to_be_found_and_once_to_be_opened(project, reads, verb):
    project.probe("all", **FEW)
    clear(reads)
    arguments = {"probe": ("all",), "extract": ("pixels",), "plan": ("pixels",)}.get(verb, ())
    options = {"probe": {"controls": True, **FEW}, "compare": {"n_resamples": 100}}.get(verb, {})
    getattr(project, verb)(*arguments, **options)
    assert set(reads["encoder"].values()) <= {1, 2}, reads["encoder"]
    if verb in {"probe", "extract"}:
        assert len(reads["encoder"]) == 3
