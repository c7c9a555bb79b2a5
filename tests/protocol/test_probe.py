from __future__ import annotations

import numpy as np
import pytest

from embedcache.data.embeddings import LabelledEmbeddings
from embedcache.data.folds import assign_folds
from embedcache.errors import LeakageError, RunError
from embedcache.probes.logistic import fit_sweep
from embedcache.protocol.nested import ProbeSettings, fit_probe


def embeddings(n_patients=30, dim=6, classes="abc", seed=0, cohort="home", spread=1.0):
    """Two or three images a patient, classes apart, patients too."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(0, 1.5, (len(classes), dim))
    X, patient, label = [], [], []
    for number in range(n_patients):
        own = chance.normal(0, 0.5, dim)
        for _ in range(chance.integers(2, 4)):
            code = int(chance.integers(len(classes)))
            X.append(centres[code] + own + chance.normal(0, spread, dim))
            patient.append(f"{cohort}-{number:03d}")
            label.append(classes[code])
    n = len(X)
    return LabelledEmbeddings(
        encoder="e",
        fingerprint="f",
        X=np.array(X, np.float32),
        image_id=tuple(f"{cohort}{i:04d}" for i in range(n)),
        patient_id=tuple(patient),
        cohort=(cohort,) * n,
        label=tuple(label),
    )


def test_every_training_image_is_predicted_by_a_probe_that_never_saw_its_patient():
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label)
    result = fit_probe(train, folds)
    (inside,) = result.predictions
    fold = folds.of(train.patient_id)
    assert (inside.fold == fold).all()
    for number, C in enumerate(result.choices["C"]):
        others = np.flatnonzero(fold != number)
        assert not {train.patient_id[i] for i in others} & {
            train.patient_id[i] for i in np.flatnonzero(fold == number)
        }
        y = np.array([inside.classes.index(name) for name in train.label])
        (path,) = fit_sweep(train.X, y, 3, [(others, [C])], tol=1e-8)
        (alone,) = path.probability(train.X[fold == number])
        assert np.allclose(alone, inside.probability[fold == number], atol=1e-3)


def test_folds_of_a_patient_moved_by_force_change_its_prediction():
    """The test above would not notice a probe that ignores its folds."""
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label)
    moved = {**folds.patients}
    first = train.patient_id[0]
    moved[first] = (moved[first] + 1) % 5
    other = type(folds)("x", 5, 0, moved)
    a, b = (fit_probe(train, table).predictions[0].probability for table in (folds, other))
    assert not np.allclose(a[0], b[0])


def test_an_external_cohort_has_no_part_in_any_choice():
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label)
    near, far = embeddings(8, seed=5, cohort="away"), embeddings(8, seed=6, cohort="away", spread=9)
    a, b = (fit_probe(train, folds, [one]) for one in (near, far))
    assert a.choices == b.choices
    assert np.array_equal(a.predictions[0].probability, b.predictions[0].probability)
    assert a.predictions[1].role == "external"
    assert (a.predictions[1].fold == -1).all()
    y = np.array(["abc".index(name) for name in train.label])
    (path,) = fit_sweep(train.X, y, 3, [(np.arange(len(y)), [a.choices["final_C"]])], tol=1e-8)
    assert np.allclose(path.probability(near.X)[0], a.predictions[1].probability, atol=1e-3)


def test_row_order_changes_no_prediction():
    train = embeddings()
    order = np.random.default_rng(1).permutation(len(train))
    mixed = train.take(order)
    folds = assign_folds(train.patient_id, train.label)
    a = fit_probe(train, folds).predictions[0].probability[order]
    b = fit_probe(mixed, folds).predictions[0].probability
    assert np.allclose(a, b, atol=1e-4)


def test_twice_is_the_same_to_the_bit():
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label)
    a, b = (fit_probe(train, folds) for _ in "ab")
    assert np.array_equal(a.predictions[0].probability, b.predictions[0].probability)
    assert a.choices == b.choices


def test_a_tie_goes_to_the_smoother_probe_and_an_edge_is_noted():
    train = embeddings(spread=0.01)
    train = LabelledEmbeddings(
        "e", "f", train.X * 0 + np.eye(6, dtype=np.float32)[["abc".index(n) for n in train.label]],
        train.image_id, train.patient_id, train.cohort, train.label,
    )  # fmt: skip
    folds = assign_folds(train.patient_id, train.label)
    result = fit_probe(train, folds, settings=ProbeSettings(grid=(0.1, 1.0, 10.0)))
    assert result.choices["C"] == [0.1] * 5
    assert result.choices["notes"] == ["C chosen at the edge of its grid in 5 folds"]


def test_folds_that_disagree_by_far_on_their_strength_are_noted():
    train = embeddings(n_patients=12, spread=3.0)
    folds = assign_folds(train.patient_id, train.label)
    far, near = (
        fit_probe(train, folds, settings=ProbeSettings(grid=(C, 10.0))).choices for C in (0.05, 0.5)
    )
    assert set(far["C"]) == {0.05, 10.0}
    assert far["notes"][1:] == ["C chosen from 0.05 to 10, by fold: the choice is unstable"]
    assert len(set(near["C"])) == 2
    assert not near["notes"][1:]


def test_a_patient_in_training_and_external_cohort_is_leakage():
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label)
    with pytest.raises(LeakageError, match="patient 'home-000' is in the training cohort and in"):
        fit_probe(train, folds, [train.take([0, 1])])


def test_what_cannot_be_fitted_is_refused():
    train = embeddings()
    folds = assign_folds(train.patient_id, train.label, n_folds=2)
    with pytest.raises(RunError, match="2 folds leave none to choose C on; pass --folds 3"):
        fit_probe(train, folds)
    away = embeddings(4, classes="abcd", seed=3, cohort="away")
    with pytest.raises(RunError, match="external label 'd' is none of a, b, c"):
        fit_probe(train, assign_folds(train.patient_id, train.label), [away])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_embedding_that_is_not_finite_names_encoder_and_image(bad):
    train = embeddings()
    X = train.X.copy()
    X[3, 2] = bad
    with pytest.raises(
        RunError, match="embedding of image 'home0003' by 'e' holds NaN or infinity"
    ):
        LabelledEmbeddings("e", "f", X, train.image_id, train.patient_id, train.cohort, train.label)
