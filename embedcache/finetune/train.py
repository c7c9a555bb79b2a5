"""One fold: epochs, the one that is kept, and what it predicts; goes on where it was killed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.layers import convert_sync_batchnorm
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from embedcache.errors import DeviceError, RunError
from embedcache.files.arrays import Codes, Floats
from embedcache.files.durable import replace_by
from embedcache.finetune.augment import augmentation
from embedcache.finetune.batches import Batch, Pictures, Reader, epoch_batches, in_parts
from embedcache.finetune.devices import (
    Fetched,
    device_name,
    memory_kept,
    peak_memory_bytes,
    repeatable,
    settle_for_less,
)
from embedcache.finetune.jobs import (
    ENCODER,
    RESULT,
    Epoch,
    FoldJob,
    FoldResult,
    Part,
    Step,
)
from embedcache.finetune.model import (
    Classifier,
    load_network,
    sees_gradient,
    set_drop_path,
    set_gradient_checkpointing,
)
from embedcache.finetune.regimes import (
    choose_parameters,
    merge_adapters,
    parameter_groups,
)
from embedcache.probes.scaling import Scaler
from embedcache.probes.selection import macro_f1
from embedcache.store.embedding_store import EmbeddingStore

STATE: Final = "state.pt"
_BEST: Final = "best-{}.pt"
_MOST_FOR_HEAD: Final = 1024  # pictures that its mean and deviation are taken from


def train_fold(
    fabric: Fabric,
    job: FoldJob,
    on_step: Callable[[Step], None] = lambda _: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> FoldResult:
    """Train a fold from where it is to its end, and keep the result in its folder.

    Every process of several runs this; the first one keeps and tells.

    Raises
    ------
    RunError
        The loss or a prediction is no number; what was finished before is kept.
    DeviceError
        The device has too little memory.
    StoreWriteError
        The disk refused; the last epoch before is kept.
    """
    devices = [fabric.device.index or 0] if fabric.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        repeatable(fabric.device),
        memory_kept(fabric.device),
    ):
        torch.manual_seed(_number(job.seed, job.fold))
        if devices:
            torch.cuda.reset_peak_memory_stats(fabric.device)
        try:
            training = _Training(fabric, job)
            training.resume()
            with _events(fabric, job) as tell:
                for epoch in range(len(training.epochs), job.recipe.epochs):
                    one = training.run_epoch(epoch, on_step)
                    tell(one)
                    on_epoch(one)
            return training.finish()
        except torch.OutOfMemoryError:
            raise DeviceError(
                f"fold {job.fold}: {fabric.device} has too little memory; pass --set accumulate="
                f"{2 * job.recipe.accumulate}, --set gradient_checkpointing=true, or a smaller "
                "--batch-size, which is another run; the epochs before are kept for this one"
            ) from None


def train_folds(fabric: Fabric, jobs: Sequence[FoldJob]) -> None:
    """Train folds, as a process that only follows the first one."""
    for job in jobs:
        train_fold(fabric, job)


def _number(*parts: int) -> int:
    """Return one seed of several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class _Training:
    """The state of one fold."""

    def __init__(self, fabric: Fabric, job: FoldJob) -> None:
        self.fabric, self.job, self.recipe = fabric, job, job.recipe
        self.epochs: list[Epoch] = []
        self.best_epoch = 0
        self.lr = 0.0
        self.seconds = 0.0
        self.reader = self._reader()
        self.classifier = self._classifier()
        trained = [one for one in self.classifier.parameters() if one.requires_grad]
        self.n_trained = sum(one.numel() for one in trained)
        self.n_parameters = sum(one.numel() for one in self.classifier.parameters())
        groups = parameter_groups(self.classifier, job.regime, self.recipe)
        optimizer = torch.optim.AdamW(groups)
        n_steps = self.recipe.epochs * -(-len(job.train) // self.recipe.batch_size)
        self.scheduler = CosineLRScheduler(
            optimizer,
            t_initial=n_steps,
            warmup_t=round(self.recipe.warmup * n_steps),
            t_in_epochs=False,
        )
        self.average = (
            ModelEmaV3(self.classifier, decay=self.recipe.ema, use_warmup=True)
            if self.recipe.ema
            else None
        )
        self.loss = nn.CrossEntropyLoss(
            weight=self._class_weights(),
            label_smoothing=self.recipe.label_smoothing,
            reduction="sum",
        )
        self.model, self.optimizer = fabric.setup(self.classifier, optimizer)

    def _classifier(self) -> Classifier:
        job, spec = self.job, self.job.found.spec
        network = load_network(job.found)
        self.n_droppable = set_drop_path(network, self.recipe.drop_path)
        if self.recipe.gradient_checkpointing:
            set_gradient_checkpointing(network, spec.name)
        classifier = Classifier(
            network,
            spec.preprocess,
            spec.dim,
            job.n_classes,
            holds_statistics=job.regime.starts_at_probe,
        )
        classifier.to(self.fabric.device)
        few = next(self._batches(np.array([0, len(job.train) - 1])))[1]
        if self.fabric.device.type == "cuda":
            with self.fabric.autocast():
                settle_for_less(lambda: sees_gradient(classifier, few))
        choose_parameters(classifier, job.regime, self.recipe, few, spec.name)
        classifier.to(self.fabric.device)  # adapters too
        if self.fabric.world_size > 1 and self.fabric.device.type == "cuda":
            # timm's own: torch's would lose the activation that timm puts into some norms.
            classifier = convert_sync_batchnorm(classifier)
        if job.probe is not None:
            classifier.head.start_at(job.probe)
        elif not (job.folder / STATE).exists():
            self._standardise(classifier)
        return classifier

    def _standardise(self, classifier: Classifier) -> None:
        """Give the head the mean and deviation of embeddings as training will first see them.

        Where batch normalisation is trained, that is with the statistics of batches.
        """
        n = len(self.job.train)
        some = np.linspace(0, n - 1, min(n, _MOST_FOR_HEAD)).astype(np.int64)
        classifier.train()
        with torch.no_grad(), self.fabric.autocast():
            rows = [classifier.embed(one) for _, one in self._batches(some)]
        classifier.head.standardise(Scaler.of(torch.cat(rows).cpu().numpy()))

    def _class_weights(self) -> torch.Tensor | None:
        """Return weights whose mean over the training images is 1; 0 for a class without any."""
        if self.recipe.class_weights == "none":
            return None
        counts = np.bincount(self.job.train.codes, minlength=self.job.n_classes)
        weights = len(self.job.train) / (np.maximum(counts, 1) * (counts > 0).sum())
        return torch.tensor(
            np.where(counts > 0, weights, 0), dtype=torch.float32, device=self.fabric.device
        )

    # Pictures

    def _reader(self) -> Reader:
        """Return what reads all of the fold's pictures, those of training first."""
        job, shape = self.job, self.job.found.spec.preprocess.shape
        pictures = Pictures(
            EmbeddingStore(job.pixels),
            [key for part in (job.train, job.validation, *job.tests) for key in part.keys],
            (shape[1], shape[2]),
            augmentation(self.recipe),
            (job.seed, job.fold),
        )
        return Reader(pictures, workers=job.workers, device=self.fabric.device)

    def _first(self, part: Part) -> int:
        """Return the reader's number of a part's first picture."""
        before = itertools.takewhile(
            lambda one: one is not part, (self.job.train, self.job.validation, *self.job.tests)
        )
        return sum(map(len, before))

    def _batches(self, numbers: Codes) -> Iterator[Batch]:
        """Yield the reader's numbers and pictures as they are, on the device."""
        size = max(1, self.recipe.batch_size // self.recipe.accumulate)
        for some, pictures in self.reader.read(in_parts(numbers, -(-len(numbers) // size))):
            yield some, pictures.to(self.fabric.device, non_blocking=True)

    # An epoch

    def run_epoch(self, epoch: int, on_step: Callable[[Step], None]) -> Epoch:
        """Train one epoch, validate, and keep the state: when this returns, it is on the disk."""
        start = time.perf_counter()
        torch.manual_seed(_number(self.job.seed, self.job.fold, epoch, self.fabric.global_rank))
        loss, waited = self._train(epoch, on_step)
        trained = time.perf_counter() - start
        probability = self._predict(self.job.validation)
        codes = self.job.validation.codes
        said = probability.argmax(axis=1)
        of_truth = probability[np.arange(len(codes)), codes]
        one = Epoch(
            fold=self.job.fold,
            epoch=epoch + 1,
            loss=loss,
            macro_f1=float(macro_f1(codes, said[None], self.job.n_classes)[0]),
            validation_loss=float(-np.log(of_truth.clip(np.finfo(np.float64).eps)).mean()),
            lr=self.lr,
            images_per_s=len(self.job.train) / trained,
            compute_share=1 - waited / trained,
            seconds=0.0,
        )
        is_best = not self.epochs or _merit(one) > max(map(_merit, self.epochs))
        self.seconds += (spent := time.perf_counter() - start)
        one = replace(one, seconds=spent, is_best=is_best)
        self.epochs.append(one)
        if is_best:
            self.best_epoch = epoch + 1
        self._keep(is_best=is_best)
        return one

    def _train(self, epoch: int, on_step: Callable[[Step], None]) -> tuple[float, float]:
        """Return the mean loss, and seconds spent waiting for pictures."""
        job, recipe, fabric = self.job, self.recipe, self.fabric
        batches = epoch_batches(len(job.train), recipe.batch_size, (job.seed, job.fold, epoch))
        least = min(map(len, batches))
        if least < fabric.world_size:
            raise RunError(
                f"batches of {least} images cannot be shared by {fabric.world_size} devices; pass "
                "a larger batch_size, or fewer --devices"
            )
        # A step is shared by all processes, and each takes its share in as many parts as the
        # others: where batch statistics are shared, they meet in every part.
        shares = [
            in_parts(
                batch[fabric.global_rank :: fabric.world_size],
                min(recipe.accumulate, len(batch) // fabric.world_size),
            )
            for batch in batches
        ]
        loader = self.reader.read([part for share in shares for part in share], epoch=epoch)
        codes = torch.from_numpy(job.train.codes)
        total = torch.zeros((), device=fabric.device)
        last, waited = Fetched(total), 0.0
        self.model.train()
        for step, (batch, share) in enumerate(zip(batches, shares, strict=True), 1):
            for number in range(len(share)):
                before = time.perf_counter()
                numbers, inputs = next(loader)
                waited += time.perf_counter() - before
                targets = codes[numbers].to(fabric.device, non_blocking=True)
                is_last = number == len(share) - 1
                with fabric.no_backward_sync(self.model, enabled=not is_last):
                    logits = self.model(inputs.to(fabric.device, non_blocking=True))
                    loss = self.loss(logits.float(), targets)
                    # Several processes' gradients are averaged, and this is to be their sum.
                    fabric.backward(loss * (fabric.world_size / len(batch)))
                total = total + loss.detach()
            self._check(float(last), epoch, step - 1)  # of the step before: there by now
            so_far = total.clone()
            if fabric.world_size > 1:  # so that all processes stop at the same step
                torch.distributed.all_reduce(so_far)
            last = Fetched(so_far)
            self._move(epoch * len(batches) + step)
            done = (epoch * len(job.train)) + sum(map(len, batches[:step]))
            on_step(Step(job.fold, epoch + 1, done, recipe.epochs * len(job.train)))
        whole = float(cast(torch.Tensor, fabric.all_reduce(total, reduce_op="sum")))
        self._check(whole, epoch, len(batches))
        return whole / len(job.train), waited

    def _check(self, loss: float, epoch: int, step: int) -> None:
        if not math.isfinite(loss):
            raise self._gone(f"in epoch {epoch + 1}, step {step}: the loss is {loss}")

    def _gone(self, what: str) -> RunError:
        return RunError(
            f"fold {self.job.fold} stopped {what}; the epochs before are kept, but this recipe "
            f"would stop there again: try --set lr={self.recipe.lr / 3:.1g}, or --precision fp32"
        )

    def _move(self, n_steps: int) -> None:
        if self.recipe.clip_norm:
            self.fabric.clip_gradients(
                self.model,
                self.optimizer,
                max_norm=self.recipe.clip_norm,
                error_if_nonfinite=False,  # a loss scaler skips such a step; else the loss tells
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        self.lr = max(group["lr"] for group in groups[:-2] or groups)
        self.scheduler.step_update(n_steps)
        if self.average is not None:
            self.average.update(self.classifier, step=n_steps)

    # Predictions

    @property
    def _kept(self) -> Classifier:
        """The weights that are validated and kept: averaged ones, where there are."""
        averaged = self.classifier if self.average is None else self.average.module
        assert isinstance(averaged, Classifier)
        return averaged

    def _predict(self, part: Part) -> Floats:
        """Return the probability of each class, shape (n, n_classes); processes share the work."""
        fabric, model = self.fabric, self._kept
        model.eval()
        if fabric.world_size > 1:  # their own batches have moved each one's batch norms
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        out = torch.zeros(len(part), self.job.n_classes, device=fabric.device)
        first = self._first(part)
        mine = first + np.arange(len(part))[fabric.global_rank :: fabric.world_size]
        with torch.no_grad(), fabric.autocast():
            for numbers, pictures in self._batches(mine):
                out[numbers - first] = model(pictures).float().softmax(1)
        rows = cast(torch.Tensor, fabric.all_reduce(out, reduce_op="sum")).cpu().double()
        if not rows.isfinite().all():  # weights that its last step broke, or an fp16 overflow
            wrong = int((~rows.isfinite().all(1)).sum())
            raise self._gone(
                f"after epoch {len(self.epochs) + 1}: {wrong} of {len(part)} predictions are nan"
            )
        return np.asarray((rows / rows.sum(1, keepdim=True)).numpy())

    # Survival

    def resume(self) -> None:
        """Go on from the last epoch that was kept, if there is one."""
        path = self.job.folder / STATE
        if not path.exists():
            return
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.classifier.load_state_dict(state["classifier"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.epochs = [Epoch(**one) for one in state["epochs"]]
        self.best_epoch, self.seconds = state["best_epoch"], state["seconds"]

    def _keep(self, *, is_best: bool) -> None:
        """Write the best weights, then the state that names them; then the last best can go."""
        if not self.fabric.is_global_zero:
            return
        best = self.job.folder / _BEST.format(self.best_epoch)
        if is_best:
            _write(best, self._kept.state_dict())
        state = {
            "classifier": self.classifier.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "epochs": [asdict(one) for one in self.epochs],
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
        }
        _write(self.job.folder / STATE, state)
        for old in self.job.folder.glob(_BEST.format("*")):
            if old != best:
                old.unlink()

    def finish(self) -> FoldResult:
        """Predict with the best epoch's weights, and keep predictions and encoder."""
        start = time.perf_counter()
        self.fabric.barrier()  # the first process has written the last state
        best = self.job.folder / _BEST.format(self.best_epoch)
        kept = self._kept
        kept.load_state_dict(torch.load(best, map_location="cpu", weights_only=True))
        probability = tuple(self._predict(part) for part in self.job.tests)
        self.seconds += time.perf_counter() - start
        result = FoldResult(
            fold=self.job.fold,
            best_epoch=self.best_epoch,
            probability=probability,
            epochs=tuple(self.epochs),
            cost={
                "seconds": round(self.seconds, 3),
                "peak_memory_bytes": peak_memory_bytes(self.fabric.device),
                "device": device_name(self.fabric.device),
                "devices": self.fabric.world_size,
                "parameters_trained": self.n_trained,
                "parameters": self.n_parameters,
                "blocks_with_drop_path": self.n_droppable,
            },
        )
        if self.fabric.is_global_zero:
            merge_adapters(kept)
            _write_encoder(self.job.folder / ENCODER, kept.encoder)
            tensors = [torch.from_numpy(one) for one in probability]
            document = {
                **asdict(result),
                "probability": tensors,
                "epochs": [*map(asdict, self.epochs)],
            }
            _write(self.job.folder / RESULT, document)
            for path in (self.job.folder / STATE, best):
                path.unlink()
        self.fabric.barrier()
        return result


def _merit(one: Epoch) -> tuple[float, float]:
    """Return what is to be largest: the score, and among equals the smaller loss."""
    return one.macro_f1, -one.validation_loss


def _write(path: Path, state: Any) -> None:
    replace_by(path, lambda stream: _save(state, stream))


def _save(state: Any, stream: BinaryIO) -> None:
    try:
        torch.save(state, stream)
    except RuntimeError as error:  # torch's writer trips over its own end where the disk is full
        refused: BaseException | None = error
        while refused is not None and not isinstance(refused, OSError):
            refused = refused.__context__
        raise (refused or error) from None


def _write_encoder(path: Path, encoder: nn.Module) -> None:
    from safetensors.torch import save

    tensors = {name: one.contiguous().cpu() for name, one in encoder.state_dict().items()}
    replace_by(path, lambda stream: stream.write(save(tensors)))


@contextlib.contextmanager
def _events(fabric: Fabric, job: FoldJob) -> Iterator[Callable[[Epoch], None]]:
    """Yield what writes an epoch for TensorBoard, if that is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        yield lambda _: None
        return
    if job.logs is None or not fabric.is_global_zero:
        yield lambda _: None
        return
    logging.getLogger("tensorboard").setLevel(logging.ERROR)

    def tell(one: Epoch) -> None:
        values = asdict(one)
        for name in ("loss", "macro_f1", "validation_loss", "lr", "images_per_s", "compute_share"):
            writer.add_scalar(name, values[name], one.epoch)
        writer.flush()

    with SummaryWriter(str(job.logs)) as writer:
        yield tell
