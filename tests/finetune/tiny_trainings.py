"""Trainings of tiny networks on tiny pictures, and what tests ask of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import tiny_encoders
import torch

import embedcache
from embedcache.encoder_folders import store_folders
from embedcache.encoders import registry
from embedcache.encoders.plugins import register_file
from embedcache.extract.pictures import hold_pixels
from embedcache.files.digests import DigestCache
from embedcache.finetune.jobs import FoldJob, Part
from embedcache.finetune.model import Classifier, load_network
from embedcache.finetune.processes import on_devices
from embedcache.finetune.recipe import Recipe, read_recipe
from embedcache.finetune.regimes import Regime, choose_parameters
from embedcache.finetune.train import train_fold, train_folds
from embedcache.probes.logistic import fit_sweep
from embedcache.runs.files import RunFiles
from embedcache.runs.record import RunRecord
from embedcache.store.embedding_store import EmbeddingStore
from embedcache.testing import write_cohort
from embedcache.verbs.session import Session

FILE = Path(tiny_encoders.__file__)
TINY = ("tiny-vit", "tiny-cnn")
_OFF = "label_smoothing ema drop_path weight_decay flip rotation translation scale"
PLAIN = dict.fromkeys(  # nothing random but the order, and nothing that keeps the loss from 0
    [*_OFF.split(), "brightness", "contrast", "gamma", "speckle"], 0.0
)
QUICK = {"epochs": 2, "batch_size": 16, "lr": 1e-3}
SETTINGS = {"encoder_file": FILE, "n_resamples": 100}


@contextmanager
def tiny_encoders_on_one_thread() -> Iterator[None]:
    """Register the tiny networks, which wait for each other's threads and do little else."""
    register_file(FILE)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def identified(name: str) -> registry.Identified:
    found = registry.identify_by_name(name, digests=DigestCache())
    digest = registry.load(found, device="cpu").identity["weights"]
    return replace(found, weights_digest=digest)


def recipe(**changes: object) -> Recipe:
    return read_recipe(None, changes)


def classifier(name: str, regime: str, **changes: object) -> tuple[Classifier, Regime, Recipe]:
    found, how, made = identified(name), Regime(regime), recipe(**changes)
    spec = found.spec
    network = Classifier(load_network(found), spec.preprocess, spec.dim, 3)
    few = torch.zeros(2, 1, *spec.preprocess.shape[1:], dtype=torch.uint8)
    choose_parameters(network, how, made, few, name)
    return network, how, made


def moved(network: Classifier) -> set[str]:
    return {name for name, one in network.named_parameters() if one.requires_grad}


def store_pictures(folder: Path) -> tuple[EmbeddingStore, tuple[str, ...], np.ndarray]:
    """Return pictures of 16 x 16 in a store, their keys and the numbers of their classes."""
    register_file(FILE)
    write_cohort(folder, n_patients=12, n_images=2, size=16)
    workspace = embedcache.open(folder).workspace
    workspace.create_store()
    images = Session(workspace).images
    preprocess = registry.find_spec("tiny-vit").preprocess
    store, report = hold_pixels(workspace, preprocess, images.files)
    assert report.n_failed == 0
    labels = images.table["label"].to_pylist()
    return store, tuple(images.keys), np.unique(labels, return_inverse=True)[1].astype(np.int64)


def images_of(store):
    """Return the images whose pictures a store holds."""
    return Session(embedcache.open(Path(store.folder).parents[2]).workspace).images


def job(stored, name: str, regime: str, folder: Path, **changes: object) -> FoldJob:
    store, keys, codes = stored
    found = identified(name)
    part = Part(keys, codes)
    probe = None
    if regime == "lp-ft":
        encoder = registry.load(found, device="cpu")
        images = images_of(store)
        X = encoder.embed([file.path for file in images.files])
        [probe] = fit_sweep(X, codes, 3, [(np.arange(len(codes)), [1.0])])
    return FoldJob(
        fold=0,
        seed=0,
        encoder=found,
        regime=Regime(regime),
        recipe=recipe(**{"precision": "fp32", "batch_size": 16, **changes}),
        n_classes=3,
        train=part,
        validation=part,
        tests=(part,),
        probe=probe,
        pixels=store.folder,
        folder=folder,
        logs=None,
        workers=0,
    )


def trained(one: FoldJob, *, n_devices: int = 1, theirs: FoldJob | None = None, **callbacks):
    """Train a fold; `theirs` is what the other processes do, where it is something else."""
    with on_devices(
        train_folds,
        ([theirs or one],),
        device="cpu",
        n_devices=n_devices,
        precision=one.recipe.precision,
        encoder_file=FILE,
    ) as fabric:
        assert fabric.world_size == n_devices
        return train_fold(fabric, one, **callbacks)


def make_tuned(folder: Path) -> Path:
    """Write two cohorts, probe and fine-tune an encoder, and keep its trainings."""
    write_cohort(folder, cohorts=("home", "abroad"), size=16)
    with tiny_encoders_on_one_thread():
        project = embedcache.open(folder)
        project.extract("tiny-vit", encoder_file=FILE)
        project.probe("tiny-vit")
        project.finetune("tiny-vit", changes=QUICK, save=True, **SETTINGS)
    return folder


def copied(tuned: Path, to: Path) -> embedcache.project.Project:
    shutil.copytree(tuned, to, dirs_exist_ok=True)
    return embedcache.open(to)


def record_of(project, kind: str) -> RunRecord:
    """Return the record of the only run of a kind."""
    [record] = [one for one in RunFiles(project.workspace).readable_records() if one.kind == kind]
    return record


def pictures_of(project) -> Path:
    """Return the only folder of pictures at training size."""
    [folder] = store_folders(project.workspace.pixels)
    return Path(folder)
