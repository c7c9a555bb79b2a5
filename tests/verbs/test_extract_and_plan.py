"""`extract` and its dry run, on small cohorts and without torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edits import other_fingerprint, tally

from embedcache.data.manifest import write_manifest
from embedcache.encoders import registry
from embedcache.errors import RunError, StoreMismatchError, UnknownEncoderError
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.verbs.session import Session


def test_a_changed_encoder_is_another_store_and_a_bare_name_then_is_ambiguous(project, monkeypatch):
    project.extract("pixels")
    first = project.embeddings("pixels")
    other_fingerprint(monkeypatch)
    assert tally(project.extract("pixels")) == (132, 0, 132, 0)
    with pytest.raises(
        StoreMismatchError, match="'pixels' has several fingerprints; name one of pi"
    ):
        project.embeddings("pixels")
    prints = [store.fingerprint for store in Session(project.workspace).stores()]
    assert len(set(prints)) == 2
    again = project.embeddings(f"pixels@{first.fingerprint[:12]}")
    assert np.array_equal(again.X, first.X)
    assert len(project.probe("all")) == 2
    kinds = project.sql("SELECT count(DISTINCT fingerprint) AS n FROM embeddings")
    assert kinds["n"].to_pylist() == [2]


def test_a_plan_says_what_would_be_done_and_does_nothing(project):
    (before,) = project.plan(["pixels"])
    assert (before.n_hits, before.n_misses, before.size_bytes) == (0, 132, 132 * 1024)
    assert before.estimate_s is None
    assert not Path(project.workspace.store).exists()
    project.extract("pixels", shard=(1, 2))
    (half,) = project.plan(["pixels"])
    assert (half.n_hits, half.n_misses) == (66, 66)
    assert half.estimate_s is not None


def test_all_models_are_those_whose_weights_are_here(project, monkeypatch):
    only = {name: registry.BUILTIN[name] for name in ("pixels", "sononet16")}
    monkeypatch.setattr(registry, "BUILTIN", only)
    report = project.extract("all")
    assert [one.encoder for one in report.tallies] == ["pixels"]


def test_weights_are_for_one_model(project, tmp_path):
    with pytest.raises(
        RunError, match="--weights is for one model, 2 were named: pixels, sononet16"
    ):
        project.extract(["pixels", "sononet16"], weights=tmp_path / "w")
    with pytest.raises(RunError, match="no model named"):
        project.extract([])


def test_two_names_of_one_encoder_are_one_pass(project):
    report = project.extract(["pixels", "pixels"])
    assert len(report.tallies) == 1
    names = ["random:resnet50", "random:timm:resnet50.a1_in1k"]
    assert [plan.encoder for plan in project.plan(names)] == [names[0]]


def test_a_control_of_what_has_no_weights_is_refused(project):
    with pytest.raises(UnknownEncoderError, match="'pixels' has no trained weights"):
        project.extract("random:pixels")


def test_stores_are_locked_in_one_order_whatever_the_order_of_the_models(project, monkeypatch):
    locked = []
    lock = EmbeddingStore.lock

    def noted(store, on_wait):
        locked.append(store.folder.name)
        return lock(store, on_wait)

    monkeypatch.setattr(EmbeddingStore, "lock", noted)
    for models in (["pixels", "random:sononet16"], ["random:sononet16", "pixels"]):
        project.extract(models)
    assert locked[:2] == locked[2:] == sorted(locked[:2])


def test_an_image_that_is_not_the_stated_one_is_left_out_of_a_probe_too(project):
    project.extract("pixels")
    rows = [{name: str(cell) for name, cell in row.items()} for row in project.images().to_pylist()]
    write_manifest(project.workspace.manifest, rows)  # now with the sha256 of each
    first, second = (project.workspace.data_root / rows[n]["path"] for n in (0, 1))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)
    assert project.extract("pixels").n_failed == 2
    assert project.embeddings("pixels").n_failed == 2
    second.unlink()  # and one that is gone for good is counted, not an error without a way out
    assert project.embeddings("pixels").n_failed == 1
    stated = project.workspace.manifest.read_text().replace(rows[1]["sha256"], "ab" * 32)
    project.workspace.manifest.write_text(stated)
    assert project.embeddings("pixels").n_failed == 2
