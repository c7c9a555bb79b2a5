"""The files of one fold: its state while it is trained, then its result and its encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from safetensors.torch import save
from torch import nn

from embedcache.files.durable import replace_by
from embedcache.finetune.jobs import Epoch, FoldResult

STATE: Final = "state.pt"
RESULT: Final = "result.pt"
ENCODER: Final = "encoder.safetensors"
_BEST: Final = "best-{}.pt"


class FoldFiles:
    """The files of one fold, each written in one step: a kill leaves the old one or the new one.

    Parameters
    ----------
    folder
        Folder of the fold.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def encoder(self) -> Path:
        """Safetensors file of the trained encoder's weights."""
        return self.folder / ENCODER

    def has_state(self) -> bool:
        """Tell whether the fold has finished an epoch before, and is not trained to its end."""
        return (self.folder / STATE).exists()

    def read_state(self) -> dict[str, Any]:
        """Return the state after the last epoch, its tensors on the CPU."""
        return _read(self.folder / STATE)

    def write_state(self, state: Mapping[str, Any], best_epoch: int) -> None:
        """Write the state after an epoch; then weights of an earlier best epoch can go.

        Parameters
        ----------
        state
            Everything that the next epoch starts from.
        best_epoch
            Number of the best epoch so far, from 1; its weights are written before.
        """
        _write(self.folder / STATE, dict(state))
        # Not before: until the new state is there, a resumed training needs the old best weights.
        for file in self.folder.glob(_BEST.format("*")):
            if file != self._best(best_epoch):
                file.unlink()

    def read_best(self, epoch: int) -> dict[str, Any]:
        """Return the weights of the best epoch, on the CPU."""
        return _read(self._best(epoch))

    def write_best(self, epoch: int, weights: Mapping[str, torch.Tensor]) -> None:
        """Write the weights of an epoch that is better than all before it."""
        _write(self._best(epoch), dict(weights))

    def read_result(self) -> FoldResult | None:
        """Return the result of a fold that was trained to its end, or None."""
        if not (self.folder / RESULT).exists():
            return None
        document = _read(self.folder / RESULT)
        return FoldResult(
            fold=document["fold"],
            best_epoch=document["best_epoch"],
            probability=tuple(tensor.numpy() for tensor in document["probability"]),
            epochs=tuple(Epoch(**epoch) for epoch in document["epochs"]),
            cost=document["cost"],
        )

    def write_result(self, result: FoldResult, encoder: nn.Module) -> None:
        """Write predictions and encoder; then the state and the best weights can go."""
        # The encoder first: a fold counts as trained once its result is there.
        tensors = {name: t.contiguous().cpu() for name, t in encoder.state_dict().items()}
        replace_by(self.encoder, lambda stream: stream.write(save(tensors)))
        document = {
            **asdict(result),
            "probability": [torch.from_numpy(rows) for rows in result.probability],
            "epochs": [asdict(epoch) for epoch in result.epochs],
        }
        _write(self.folder / RESULT, document)
        for file in (self.folder / STATE, self._best(result.best_epoch)):
            file.unlink()

    def _best(self, epoch: int) -> Path:
        return self.folder / _BEST.format(epoch)


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    replace_by(path, lambda stream: _save(content, stream))


def _save(content: dict[str, Any], stream: BinaryIO) -> None:
    try:
        torch.save(content, stream)
    except RuntimeError as error:  # torch's writer trips over its own end where the disk is full
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__context__
        raise (cause or error) from None
