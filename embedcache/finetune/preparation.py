"""The network of a fold as its training begins: which tensors move, and where the head starts."""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.layers import convert_sync_batchnorm

from embedcache.finetune.determinism import relax_determinism_if_needed
from embedcache.finetune.fold_pictures import FoldPictures
from embedcache.finetune.jobs import FoldJob
from embedcache.finetune.model import (
    Classifier,
    load_network,
    sees_gradient,
    set_drop_path,
    set_gradient_checkpointing,
)
from embedcache.finetune.regimes import choose_parameters
from embedcache.probes.scaling import Scaler

_MOST_FOR_HEAD: Final = 1024  # pictures that the head's mean and deviation are taken from


def prepare_classifier(
    fabric: Fabric, job: FoldJob, pictures: FoldPictures, *, resumes: bool
) -> tuple[Classifier, int]:
    """Return the classifier of a fold on the device, and the number of blocks with drop path.

    Parameters
    ----------
    fabric
        Fabric of this process.
    job
        The fold.
    pictures
        Its pictures.
    resumes
        Whether a state will be read into the classifier, so that the head need not be standardised.
    """
    spec, recipe = job.encoder.spec, job.recipe
    network = load_network(job.encoder)
    n_droppable = set_drop_path(network, recipe.drop_path)
    if recipe.gradient_checkpointing:
        set_gradient_checkpointing(network, spec.name)
    classifier = Classifier(
        network,
        spec.preprocess,
        spec.dim,
        job.n_classes,
        holds_statistics=job.regime.starts_at_probe,
    )
    classifier.to(fabric.device)
    sample = next(pictures.unchanged(np.array([0, len(job.train) - 1])))[1]
    if fabric.device.type == "cuda":
        with fabric.autocast():
            relax_determinism_if_needed(lambda: sees_gradient(classifier, sample))
    choose_parameters(classifier, job.regime, recipe, sample, spec.name)
    classifier.to(fabric.device)  # the adapters that LoRA has added too
    if fabric.world_size > 1 and fabric.device.type == "cuda":
        # timm's own: torch's would lose the activation that timm puts into some norms.
        classifier = convert_sync_batchnorm(classifier)
    if job.probe is not None:
        classifier.head.start_at(job.probe)
    elif not resumes:
        _standardise_head(fabric, classifier, job, pictures)
    return classifier, n_droppable


def _standardise_head(
    fabric: Fabric, classifier: Classifier, job: FoldJob, pictures: FoldPictures
) -> None:
    """Give the head the mean and deviation of embeddings as training will first see them.

    Where batch normalisation is trained, that is with the statistics of batches.
    """
    n = len(job.train)
    # Spread over all of them: neighbours are often one patient's.
    numbers = np.linspace(0, n - 1, min(n, _MOST_FOR_HEAD)).astype(np.int64)
    classifier.train()
    with torch.no_grad(), fabric.autocast():
        rows = [classifier.embed(batch) for _, batch in pictures.unchanged(numbers)]
    classifier.head.standardise(Scaler.of(torch.cat(rows).cpu().numpy()))


def class_weights(job: FoldJob, device: torch.device) -> torch.Tensor | None:
    """Return the weight of each class in the loss, shape (n_classes,), or None for equal ones.

    Their mean over the training images is 1; a class without training images has 0.
    """
    if job.recipe.class_weights == "none":
        return None
    counts = np.bincount(job.train.codes, minlength=job.n_classes)
    weights = len(job.train) / (np.maximum(counts, 1) * (counts > 0).sum())
    return torch.tensor(np.where(counts > 0, weights, 0), dtype=torch.float32, device=device)
