"""An encoder with a head on it: bytes of pictures in, logits out."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from timm.layers import DropPath
from torch import nn

from embedcache.encoders.preprocess import Preprocess
from embedcache.encoders.registry import Identified, load
from embedcache.encoders.torch_encoder import TorchEncoder
from embedcache.errors import EncoderError
from embedcache.files.arrays import Floats
from embedcache.probes.logistic import LogisticPath
from embedcache.probes.scaling import Scaler

BATCH_NORMS: Final = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_ABSENT: Final = object()
# What networks call the place on a residual branch where a whole branch can be dropped.
_DROPS: Final = ("drop_path", "drop_path1", "drop_path2", "ls_1", "ls_2")


class Normalise(nn.Module):
    """The arithmetic of an encoder's preprocessing, on the device; fitting is done before.

    Parameters
    ----------
    preprocess
        Preprocessing of the encoder; its way of fitting is not used here.
    """

    def __init__(self, preprocess: Preprocess) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.std: torch.Tensor
        self.by_image = preprocess.normalise == "image"
        self.channels = len(preprocess.mean)
        for name, values in (("mean", preprocess.mean), ("std", preprocess.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return what the network takes, for uint8 of shape (n, 1 or 3, height, width)."""
        values = pixels.float()
        # In the order of `Preprocess`, so that training sees what extraction sees.
        if self.by_image or self.channels == 1:
            values = values.mean(1, keepdim=True)
        if self.by_image:
            # A picture of one grey value has no spread; dividing by 1 leaves it at zero.
            centred = values - values.mean((1, 2, 3), keepdim=True)
            spread = centred.square().mean((1, 2, 3), keepdim=True).sqrt()
            values = centred / torch.where(spread > 0, spread, 1.0) * 255
        else:
            values = (values / 255 - self.mean) / self.std
        return values.expand(-1, self.channels, -1, -1)


class Head(nn.Module):
    """A linear layer on standardised embeddings: what the logistic probe is, too.

    It starts at zero, where all classes are alike.

    Parameters
    ----------
    dim
        Length of an embedding.
    n_classes
        Number of classes, at least 2.
    """

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.mean: torch.Tensor
        self.inverse: torch.Tensor
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("inverse", torch.ones(dim))
        self.linear = nn.Linear(dim, n_classes)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def standardise(self, scaler: Scaler) -> None:
        """Take mean and deviation of embeddings."""
        self._fill(mean=scaler.mean, inverse=scaler.inverse)

    def start_at(self, probe: LogisticPath) -> None:
        """Take over a logistic probe, the first of its path.

        A class that it was not trained on has an intercept of minus infinity there, and gets the
        least of the others.
        """
        intercept = probe.intercept[0]
        is_trained = np.isfinite(intercept)
        self.standardise(probe.scaler)
        self._fill(
            **{
                "linear.weight": probe.coef[0],
                "linear.bias": np.where(is_trained, intercept, intercept[is_trained].min()),
            }
        )

    def _fill(self, **values: Floats) -> None:
        state = self.state_dict()
        for name, array in values.items():
            # A state dictionary shares its memory with the module.
            state[name].copy_(torch.from_numpy(array))

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, n_classes)."""
        logits: torch.Tensor = self.linear((embeddings - self.mean) * self.inverse)
        return logits


class Classifier(nn.Module):
    """Pictures to logits.

    Parameters
    ----------
    encoder
        Network that maps (n, channels, height, width) to (n, dim).
    preprocess
        Preprocessing of the encoder; its arithmetic goes before the network.
    dim
        Length of an embedding.
    n_classes
        Number of classes of the head, at least 2.
    holds_statistics
        Whether batch normalisation keeps the statistics that it came with while it is trained.
    """

    def __init__(
        self,
        encoder: nn.Module,
        preprocess: Preprocess,
        dim: int,
        n_classes: int,
        *,
        holds_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.holds_statistics = holds_statistics
        self.normalise = Normalise(preprocess)
        self.encoder = encoder
        self.head = Head(dim, n_classes)

    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return embeddings, shape (n, dim), for uint8 of shape (n, 1 or 3, height, width)."""
        # Convolutions are faster in this format, as in `TorchEncoder`.
        images = self.normalise(pixels).contiguous(memory_format=torch.channels_last)
        rows: torch.Tensor = self.encoder(images)
        return rows.float()

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (n, n_classes)."""
        logits: torch.Tensor = self.head(self.embed(pixels))
        return logits

    def train(self, mode: bool = True) -> Classifier:
        """Put what is trained into training mode; a frozen part works as it would be applied.

        Or batch normalisation would drift, and branches drop, where nothing can answer to it.
        """
        super().train(mode)
        for part in self.modules() if mode else ():
            mine = list(part.parameters())
            is_frozen = bool(mine) and not any(parameter.requires_grad for parameter in mine)
            if is_frozen or (self.holds_statistics and isinstance(part, BATCH_NORMS)):
                part.eval()
        return self


def load_network(encoder: Identified) -> nn.Module:
    """Return an encoder's network with its weights, on the CPU, ready to be trained.

    Raises
    ------
    EncoderError
        The encoder is no network of torch.
    EncoderWeightsError
        The weights file is not this encoder's.
    """
    loaded = load(encoder, device="cpu")
    if not isinstance(loaded, TorchEncoder):
        raise EncoderError(
            f"'{encoder.spec.name}' is no network of torch, so there is nothing to train; "
            "fine-tune an encoder that has weights"
        )
    return loaded.module.requires_grad_(requires_grad=True)


def set_drop_path(network: Any, most: float) -> int:
    """Let residual branches drop out, the first never and the last with chance `most`.

    Parameters
    ----------
    network
        Network whose `DropPath` and `Identity` modules are replaced where they are.
    most
        Chance that the last block's branches are dropped, from 0 to 1.

    Returns
    -------
    Number of blocks that have such branches; 0 where the network has none.

    References
    ----------
    Huang et al. 2016, arXiv 1603.09382: linear decay of survival.
    """
    blocks = []
    for module in network.modules():
        names = [name for name in _DROPS if _is_free(getattr(module, name, _ABSENT))]
        if names:
            blocks.append((module, names))
    for number, (module, names) in enumerate(blocks):
        rate = most * number / max(1, len(blocks) - 1)
        for name in names:
            setattr(module, name, DropPath(rate) if rate else nn.Identity())
    return len(blocks)


def _is_free(place: Any) -> bool:
    """Tell whether nothing but a dropped branch is there, or could be."""
    return place is None or isinstance(place, nn.Identity | DropPath)


def set_gradient_checkpointing(network: Any, name: str) -> None:
    """Compute activations twice instead of keeping them.

    Parameters
    ----------
    network
        Network with a `set_grad_checkpointing`, as timm's have.
    name
        Name of the encoder, for the error.

    Raises
    ------
    EncoderError
        The network has no gradient checkpointing.
    """
    if not hasattr(network, "set_grad_checkpointing"):
        raise EncoderError(
            f"'{name}' has no gradient checkpointing; leave out gradient_checkpointing, or raise "
            "accumulate"
        )
    network.set_grad_checkpointing()


def sees_gradient(classifier: Classifier, pixels: torch.Tensor) -> set[str]:
    """Return the names of the encoder's parameters that a step would move.

    Some networks carry tensors that nothing is computed with (SonoNet's classifier, BEiT's mask);
    they must not be handed to an optimiser, nor be waited for by several processes.

    Parameters
    ----------
    classifier
        Classifier on the device of `pixels`; its gradients are cleared, and it is left in
        evaluation mode.
    pixels
        A few pictures, uint8, shape (n, 1 or 3, height, width).
    """
    classifier.eval()
    with torch.enable_grad():
        # The head starts at zero, so it would pass nothing on: ask the embedding itself.
        classifier.embed(pixels).square().sum().backward()
    reached = {n for n, p in classifier.encoder.named_parameters() if p.grad is not None}
    classifier.zero_grad(set_to_none=True)
    return reached
