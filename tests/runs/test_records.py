"""Requests, methods and records: what is written is read back, what is unknown is kept."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_runs import made_record, made_request

from embedcache.data.folds import FoldTable
from embedcache.data.question import Question
from embedcache.probes.families import PROBES
from embedcache.protocol.protocols import PROTOCOLS
from embedcache.runs.methods import (
    PROBE_NAMES,
    PROTOCOL_NAMES,
    CurveMethod,
    FinetuneMethod,
    ProbeMethod,
    UnknownMethod,
    ZeroShotMethod,
    method_from_document,
)
from embedcache.runs.record import TableFile, TrainingCost, record_from_document
from embedcache.runs.request import RunData

METHODS = [
    ProbeMethod(),
    ProbeMethod("knn", "clip", "one-se", "folds", (0.1, 1e-300, 10.0), 7),
    FinetuneMethod("lora", {"epochs": 3, "lr": 1e-4, "betas": [0.9, 0.999], "precision": "fp32"}),
    ZeroShotMethod(({"name": "a", "labels": ["x"], "prompts": ["an a", "the a"]},), 100.0),
    CurveMethod(),
    CurveMethod((1, 2, 4), 3),
]


def through_json(document):
    return json.loads(json.dumps(document))


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.tag)
def test_a_method_comes_back_as_it_was(method):
    again = method_from_document(through_json(method.document()))
    assert again == method
    assert again.document() == method.document()
    assert again.label == method.label
    assert again.external_by == method.external_by


@pytest.mark.parametrize(
    "document",
    [{"tag": "dream", "depth": [1, {"a": None}]}, {}, {"tag": "finetune"}, {"tag": "zeroshot"}],
)
def test_a_method_that_is_not_known_is_kept_as_it_was_written(document):
    method = method_from_document(document)
    assert isinstance(method, UnknownMethod)
    assert method.document() == document
    assert method.external_by is None


def test_a_method_that_lacks_a_setting_has_the_default_and_one_with_more_is_kept():
    assert method_from_document({"tag": "probe", "probe": "lda"}) == ProbeMethod("lda")
    assert method_from_document({"tag": "curve", "n_draws": 2}) == CurveMethod(n_draws=2)
    later = {"tag": "curve", "n_draws": 2, "order": "new"}
    assert method_from_document(later) == UnknownMethod(later)


def test_labels_say_what_departs_from_the_usual():
    assert [method.label for method in METHODS] == [
        "logistic",
        "knn, clip, one-se, external by folds, grid (0.1, 1e-300, 10.0)",
        "lora",
        "zeroshot",
        "curve",
        "curve",
    ]


def test_names_for_the_command_line_are_those_that_there_are():
    assert tuple(PROBES) == PROBE_NAMES
    assert tuple(PROTOCOLS) == PROTOCOL_NAMES


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.tag)
def test_a_record_comes_back_as_it_was(method):
    request = replace(
        made_request(method=method, kind=method.tag if method.tag != "zeroshot" else "zeroshot"),
        question=Question(
            label="plane",
            task="multilabel",
            train_cohort="home",
            external=("abroad", "away"),
            where="frame = 0",
            class_map="map.csv",
            classes={"a": "b"},
            folds=7,
            seed=3,
            official_split=True,
        ),
        data=RunData("1" * 64, ("2" * 64,), "3" * 16, "4" * 16, "5" * 64),
        constants={"protocol": "p-1", "values": [0.1], "tol": {"fit": 1e-6}},
    )
    record = replace(
        made_record(request, results={"C": [0.25, 1.0], "final_C": 0.5, "inner": {"a": None}}),
        notes=("a note",),
        n_skipped=3,
        tables={"metrics": TableFile("metrics.00000001.parquet", 12, 1)},
    )
    again = record_from_document(through_json(record.document()))
    assert again.document() == record.document()
    assert replace(again, stored_id=None) == record
    assert again.run_id == record.run_id == request.run_id
    assert again.question is not None
    assert (again.final_settings, again.fold_settings) == ({"C": 0.5}, {"C": [0.25, 1.0]})


def test_an_unknown_kind_of_run_is_read_and_written_back():
    document = {
        "run_id": "dreams-e-1",
        "kind": "dreams",
        "encoder": "e",
        "fingerprint": "f",
        "question": {"label": "label", "task": "dreaming", "weights": "per patient"},
        "method": {"tag": "dream", "depth": 3},
        "constants": {"moon": True},
        "n_resamples": 5,
        "data": {"external": [], "manifest": "1" * 16, "moons": 2},
        "results": {"notes": ["n"], "n_skipped": 1, "best": {"of": "all"}},
        "versions": {"numpy": "9"},
        "created": "2030",
        "seconds": 1.5,
        "tables": {"visions": ["visions.00000000.parquet", 1, 2]},
        "weather": "fair",
    }
    record = record_from_document(document)
    assert record.kind == record.label == record.regime == "dreams"
    assert (record.notes, record.n_skipped) == (("n",), 1)
    written = record.document()
    for key in ("run_id", "kind", "method", "constants", "results", "versions", "tables"):
        assert written[key] == document[key], key
    assert record_from_document(through_json(written)).document() == written


def test_nothing_but_the_name_of_a_run_is_required():
    record = record_from_document({"run_id": "x-1"})
    assert (record.run_id, record.kind, record.encoder) == ("x-1", "unknown", "")
    assert record_from_document(record.document()).document() == record.document()


def test_what_decides_a_run_decides_its_name():
    request = made_request(folds_id="1" * 16)
    others = [
        replace(request, fingerprint="other"),
        replace(request, method=ProbeMethod(seed=1)),
        replace(request, question=replace(request.question, where="1 = 1")),
        replace(request, question=replace(request.question, seed=1)),
        replace(request, data=replace(request.data, folds_id="2" * 16)),
        replace(request, data=replace(request.data, train="3" * 64)),
        replace(request, data=replace(request.data, pictures="4" * 64)),
        replace(request, constants={"protocol": "p-2"}),
        replace(request, n_resamples=99),
        replace(request, versions={"numpy": "1"}),
    ]
    assert len({one.run_id for one in [request, *others]}) == len(others) + 1
    assert replace(request, data=replace(request.data, manifest="9")).run_id == request.run_id
    named = replace(request, encoder="random:timm/resnet@x y")
    assert named.run_id.startswith("probe-random-timm-resnet-x-y-")


def test_a_question_on_a_table_of_folds_is_that_on_their_number():
    question = Question(folds=3)
    table = FoldTable("1" * 16, 3, 0, {"p": 0})
    assert question.on_folds(table).document() == question.document()
    assert Question.from_document(through_json(question.document())) == question


def test_what_a_training_cost_is_told_from_its_record():
    epochs = [{"seconds": 1.0, "compute_share": 0.5, "images_per_s": 10.0},
              {"seconds": 3.0, "compute_share": 1.0, "images_per_s": 20.0}]  # fmt: skip
    cost = {
        "seconds": 4.0,
        "peak_memory_bytes": 10,
        "device": "cpu",
        "devices": 1,
        "parameters": 5,
        "parameters_trained": 2,
        "blocks_with_drop_path": 0,
    }
    request = made_request(kind="finetune", method=FinetuneMethod("lora", {}))
    record = made_record(request, results={"epochs": [epochs], "cost": [cost], "best_epoch": [2]})
    assert (record.regime, record.label, record.best_epochs) == ("lora", "lora", [2])
    assert record.compute_share == pytest.approx((0.5 + 3.0) / 4)
    assert record.images_per_s == pytest.approx(15)
    cost.pop("blocks_with_drop_path")
    assert record.training_costs == [TrainingCost(**cost)]
