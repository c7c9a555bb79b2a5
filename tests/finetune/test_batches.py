"""Who trains and who tests, in which order, and pictures that are changed alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tiny_trainings import (
    PLAIN,
    images_of,
    job,
    recipe,
    store_pictures,
    tiny_encoders_on_one_thread,
    trained,
)

import embedcache
from embedcache.encoders import registry
from embedcache.errors import LeakageError
from embedcache.extract.pictures import hold_pixels
from embedcache.finetune import batches
from embedcache.finetune.augment import augmentation
from embedcache.finetune.splits import Split, check_apart, split_fold
from embedcache.testing import write_cohort
from embedcache.verbs.session import Session


@pytest.fixture(autouse=True)
def _tiny_encoders():
    with tiny_encoders_on_one_thread():
        yield


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return store_pictures(tmp_path_factory.mktemp("stored"))


@settings(max_examples=40, deadline=None)
@given(st.integers(6, 40), st.integers(1, 4), st.sampled_from([0.1, 0.15, 0.3]), st.integers(0, 5))
def test_no_patient_is_on_two_sides_of_any_fold(n_patients, n_images, share, seed):
    patient = [f"p{number % n_patients}" for number in range(n_patients * n_images)]
    label = [("a", "b", "c")[int(name[1:]) % 3] for name in patient]
    if len(set(label)) == len(label):
        return
    fold = np.array([int(name[1:]) % 3 for name in patient])
    for number in range(3):
        split = split_fold(patient, label, fold, number, validation=share, seed=seed)
        rows = np.concatenate([split.train, split.validation, split.test])
        assert sorted(rows) == list(range(len(patient)))
        assert set(split.test) == set(np.flatnonzero(fold == number))
        assert len(split.train)
        assert len(split.validation)
        sides = [{patient[row] for row in part} for part in (split.train, split.validation)]
        tested = {patient[row] for row in split.test}
        for one, other in ((sides[0], tested), (sides[1], tested), sides):
            assert not one & other


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (((0,), (1,), (2, 3)), "1 patients are in both the train and the test part"),
        (((1,), (0,), (2, 3)), "1 patients are in both the validation and the test part"),
        (((0,), (2,), (1, 3)), "1 patients are in both the train and the validation part"),
    ],
)
def test_a_patient_on_two_sides_is_refused(split, message):
    with pytest.raises(LeakageError, match=message):
        check_apart(np.array(["a", "b", "a", "c"]), Split(*map(np.array, split)))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(0, 9))
def test_an_epoch_holds_each_image_once_in_batches_of_nearly_one_size(n, size, seed):
    parts = batches.epoch_batches(n, size, (seed,))
    assert sorted(np.concatenate(parts)) == list(range(n))
    lengths = {len(part) for part in parts}
    assert max(lengths) <= size
    assert max(lengths) - min(lengths) <= 1


def test_epochs_have_orders_of_their_own_and_the_same_one_again():
    first, again, other = (batches.epoch_batches(50, 8, (0, 1, e)) for e in (0, 0, 1))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


def test_stored_pictures_are_the_bytes_of_the_fitted_ones(stored, tmp_path):
    store, keys, _ = stored
    assert store.dtype == np.uint8
    rows = store.read(keys[:3])
    assert rows.dtype == np.uint8
    images = images_of(store)
    fit = registry.find_spec("tiny-vit").preprocess.unnormalised()
    for row, file in zip(rows, images.files, strict=False):
        assert np.array_equal(row.reshape(3, 16, 16), fit(Image.open(file.path)))


def test_a_picture_changes_alike_whoever_loads_it_and_beside_whom(stored):
    store, keys, _ = stored
    pictures = batches.Pictures(store, keys, (16, 16), augmentation(recipe()), (0, 1))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _, together = pictures.__getitems__([(2, 3), (2, 4), (2, 5)])
    assert torch.equal(torch.get_rng_state(), before)
    _, alone = pictures.__getitems__([(2, 4)])
    assert torch.equal(together[1:2], alone)
    _, later = pictures.__getitems__([(3, 4)])
    assert not torch.equal(later, alone)
    _, plain = pictures.__getitems__([(batches.UNCHANGED, 4)])
    assert np.array_equal(plain[0, 0].numpy(), store.read([keys[4]]).reshape(3, 16, 16)[0])
    for workers in (0, 1):
        reader = batches.Reader(pictures, workers=workers, device=torch.device("cpu"))
        for _ in "ab":  # the same workers, another turn
            ((numbers, loaded),) = list(reader.read([[5, 4]], epoch=2))
            assert numbers.tolist() == [5, 4]
            assert torch.equal(loaded, together[[2, 1]])


def test_a_grey_picture_changes_alike_beside_one_in_colour(tmp_path):
    write_cohort(tmp_path, n_patients=4, n_images=1, size=16)
    for path in sorted((tmp_path / "images").glob("*.png"))[::2]:
        grey = np.asarray(Image.open(path))
        Image.fromarray(np.stack([grey, grey // 2, grey // 3], axis=2)).save(path)
    workspace = embedcache.open(tmp_path).workspace
    workspace.create_store()
    images = Session(workspace).images
    store, _ = hold_pixels(workspace, registry.find_spec("tiny-vit").preprocess, images.files)
    pictures = batches.Pictures(store, images.keys, (16, 16), augmentation(recipe()), (0,))
    _, together = pictures.__getitems__([(0, number) for number in range(len(images.keys))])
    assert together.shape[1] == 3
    for number, one in enumerate(together):
        _, alone = pictures.__getitems__([(0, number)])
        assert torch.equal(alone[0].expand(3, -1, -1), one)


def test_workers_leave_the_draws_of_drop_path_alone(stored, tmp_path):
    settings = {"epochs": 2, "lr": 1e-3, "drop_path": 0.5}
    losses = []
    for workers in (0, 1):
        one = job(stored, "tiny-vit", "finetune", tmp_path / str(workers), **settings)
        losses.append([epoch.loss for epoch in trained(replace(one, workers=workers)).epochs])
    assert losses[0] == losses[1]


def test_augmentation_keeps_shape_type_and_top():
    torch.manual_seed(0)
    picture = torch.zeros(1, 32, 32, dtype=torch.uint8)
    picture[:, :8] = 200
    for _ in range(20):
        changed = augmentation(recipe())(picture)
        assert changed.shape == picture.shape
        assert changed.dtype == torch.uint8
        assert changed[0, :8].float().mean() > changed[0, 24:].float().mean()
    plain = augmentation(recipe(**PLAIN))
    assert torch.equal(plain(picture), picture)
