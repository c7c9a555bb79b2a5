"""Which stored runs meet in a contest, and which are repeats of one contender."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from edits import flip
from made_answers import made_predictions
from made_runs import made_record, made_request, store_run

from embedcache.data.fold_tables import store_fold_table
from embedcache.data.folds import given_identity
from embedcache.protocol.protocols import PROTOCOLS
from embedcache.runs.contenders import choose_runs
from embedcache.runs.files import RunFiles
from embedcache.runs.methods import FinetuneMethod, ProbeMethod
from embedcache.runs.repeats import repeat_key


def answers(seed, own=1, fold_seed=None):
    """Answers on the folds of a seed."""
    home = made_predictions(2.0, own=own + 100 * seed)
    patients = np.array([int(name.rpartition("-")[2]) for name in home.patient_id])
    shift = seed if fold_seed is None else fold_seed
    return replace(home, fold=(patients * (shift + 1) + patients // 7) % 3)


def untrained(predictions):
    return replace(predictions, role="external", fold=np.full(len(predictions.label), -1))


@pytest.fixture
def store(project):
    """Write runs of an encoder with some seeds into a project's store; return a contest of all."""
    project.workspace.create_store()

    def write(encoder, *seeds, day=1, own=1, fold_seed=None, **settings):
        for seed in seeds:
            run = answers(seed, own, fold_seed)
            store_run(
                project,
                f"{settings.get('kind', 'probe')}-{encoder}-{seed}",
                encoder,
                [untrained(run) if settings.get("kind") == "zeroshot" else run],
                created=f"2025-01-{day:02d}T{seed:02d}",
                seed=seed,
                **settings,
            )

    write.project = project
    write.contest = lambda *names: choose_runs(RunFiles(project.workspace), None, names or None)
    return write


def seeds_of(contest):
    return {name: contender.seeds for name, contender in contest.contenders.items()}


def test_runs_that_differ_in_the_seed_alone_are_one_contender(store):
    store("a", 2, 0, 1)
    store("b", 0, 1, 2, own=2)
    contest = store.contest()
    assert seeds_of(contest) == {"a": (0, 1, 2), "b": (0, 1, 2)}
    assert contest.notes == ()
    a, b = contest.contenders.values()
    assert a.run_ids == ("probe-a-0", "probe-a-1", "probe-a-2")
    assert a.record.seed == 0
    for ours, theirs in zip(a.cohorts["home"], b.cohorts["home"], strict=True):
        assert ours.image_id == theirs.image_id == contest.cohorts["home"].image_id
        assert (ours.fold == theirs.fold).all()
    first, second, _ = a.cohorts["home"]
    assert (first.fold != second.fold).any()
    assert (first.probability != second.probability).any()
    first = RunFiles(store.project.workspace).estimates("probe-a-0")
    assert [score.value for score in a.estimates] == [score.value for score in first]


def test_only_seeds_that_all_have_count_and_one_line_says_what_is_left_out(store):
    store("a", 0, 1, 2, 3)
    store("b", 1, 2, own=2)
    store("c", 1, 2, 5, own=3, day=2)
    contest = store.contest()
    assert seeds_of(contest) == dict.fromkeys("abc", (1, 2))
    assert contest.notes == (
        "repeats left out, for not every run has their folds: 2 of a, 1 of c; `embedcache probe "
        "-m a -m b -m c --repeats 6` makes those that are missing",
    )
    assert contest.contenders["a"].record.run_id == "probe-a-1"


def test_a_contender_without_a_seed_of_the_others_is_left_out(store):
    store("a", 0, 1, day=2)
    store("b", 3, own=2)
    contest = store.contest()
    assert seeds_of(contest) == {"a": (0, 1)}
    assert contest.notes == ("probe-b-3 left out: other folds of 'home' than probe-a-1",)


def test_named_runs_are_these_and_no_others(store):
    store("a", 0, 1, 2)
    store("b", 0, 1, 2, own=2)
    contest = store.contest("probe-b-1", "probe-a-0", "probe-a-1")
    assert seeds_of(contest) == {"a": (1,), "b": (1,)}
    assert contest.notes == (
        "repeats left out, for not every run has their folds: 1 of a; `embedcache probe -m b "
        "--repeats 2` makes those that are missing",
    )


def test_an_encoder_that_lacks_repeats_is_named_with_the_command_that_makes_them(store):
    store("a", 2, 3, 4)
    store("b", 2, 3, 4, own=2)
    store("c", 2, own=3)
    contest = store.contest()
    assert seeds_of(contest) == dict.fromkeys("abc", (2,))
    assert contest.notes == (
        "repeats left out, for not every run has their folds: 2 of a, 2 of b; `embedcache probe "
        "-m c --seed 2 --repeats 3` makes those that are missing",
    )


def test_runs_by_two_versions_of_a_protocol_are_noted_and_no_repeats_of_one_another(store):
    store("a", 0, constants={"protocol": "p-2"}, day=2)
    store("b", 0, own=2, constants={"protocol": "p-1"})
    store("a", 1, constants={"protocol": "p-1"})
    store("c", 0, own=3, constants={"protocol": "k-1"}, method=ProbeMethod(protocol="clip"))
    contest = store.contest()
    assert set(seeds_of(contest).values()) == {(0,)}
    assert contest.notes == (
        "runs by several versions of a protocol: p-1 of b (logistic); p-2 of a (logistic); make "
        "the older ones again",
    )


def test_prompts_have_no_seed_and_stand_beside_every_repeat(store):
    store("a", 0, 1, 2)
    store("b", 0, kind="zeroshot", own=2)
    contest = store.contest()
    assert seeds_of(contest) == {"a (logistic)": (0, 1, 2), "b (zeroshot)": (0,)}
    assert contest.notes == ()
    repeats = contest.contenders["b (zeroshot)"].cohorts["home"]
    assert len(repeats) == 3
    assert all(one is repeats[0] for one in repeats)


def test_a_probe_on_given_folds_stands_beside_every_training_on_them(store):
    patients = dict(zip(answers(0).patient_id, answers(0).fold.tolist(), strict=True))
    folds_id = given_identity(dict(sorted(patients.items())))
    store_fold_table(store.project.workspace, folds_id, dict(sorted(patients.items())))
    training = {"kind": "finetune", "method": FinetuneMethod("finetune", {"epochs": 2})}
    store("a", 0, 1, fold_seed=0, folds_id=folds_id, **training)
    store("b", 7, fold_seed=0, folds_id=folds_id, own=2)
    store("b", 1, own=2, day=3)  # drawn with a seed: no repeat of a probe on given folds
    assert seeds_of(store.contest("finetune-a-0", "finetune-a-1", "probe-b-7")) == {
        "a (finetune)": (0, 1),
        "b (logistic)": (7,),
    }
    contest = store.contest()
    assert seeds_of(contest) == {"b": (1,)}
    assert contest.notes == ("finetune-a-1 left out: other folds of 'home' than probe-b-1",)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_on_given_folds_a_seed_counts_where_the_protocol_draws_by_it(store, protocol):
    patients = dict(zip(answers(0).patient_id, answers(0).fold.tolist(), strict=True))
    folds_id = given_identity(dict(sorted(patients.items())))
    store_fold_table(store.project.workspace, folds_id, dict(sorted(patients.items())))
    method = ProbeMethod(protocol=protocol)
    store("a", 0, 1, fold_seed=0, folds_id=folds_id, method=method)
    draws = PROTOCOLS[protocol].choice != "nested"
    assert len(store.contest().contenders["a"].seeds) == (2 if draws else 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"method": ProbeMethod(grid=(0.1, 1.0))},
        {"method": ProbeMethod("knn")},
        {"train": "rows"},
        {"external": ("rows",)},
        {"pictures": "pixels"},
        {"task": "multilabel"},
        {"kind": "control"},
        {"constants": {"protocol": "another-version"}},
        {"constants": {"scores": "another-version"}},
    ],
)
def test_runs_that_differ_in_more_than_the_seed_are_no_repeats(settings):
    one, other = made_request(seed=0), made_request(seed=1, **settings)
    assert repeat_key(made_record(one)) != repeat_key(made_record(other))


def test_seed_folds_and_remembered_manifest_make_no_difference_between_repeats():
    one = made_request(seed=0, folds_id="0", manifest="m")
    other = made_request(seed=1, folds_id="1", manifest="n", method=ProbeMethod(seed=1))
    keys = {repeat_key(made_record(request)) for request in (one, other)}
    assert len(keys) == 1
    assert repeat_key(made_record(one), {"0"}) not in keys


def test_a_damaged_repeat_costs_itself_alone(store, caplog):
    store("a", 0, 1, 2)
    folder = store.project.workspace.runs / "probe-a-1"
    for entry in folder.list():
        if entry.name.startswith("predictions"):
            flip(folder / entry.name)
    assert seeds_of(store.contest()) == {"a": (0, 2)}
    assert "run 'probe-a-1' is left out: " in caplog.text
