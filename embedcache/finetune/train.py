"""One fold: its epochs, the best of them, and what it predicts; goes on where it was killed."""

from __future__ import annotations

import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning_fabric import Fabric
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3
from torch import nn

from embedcache.errors import DeviceError, RunError
from embedcache.files.arrays import Codes, Floats
from embedcache.finetune.batches import epoch_batches, in_parts
from embedcache.finetune.determinism import repeatable
from embedcache.finetune.events import epoch_events
from embedcache.finetune.fold_files import FoldFiles
from embedcache.finetune.fold_pictures import FoldPictures
from embedcache.finetune.jobs import Epoch, FoldJob, FoldResult, Part, Step
from embedcache.finetune.memory import peak_memory_bytes, reuse_freed_memory
from embedcache.finetune.model import Classifier
from embedcache.finetune.preparation import class_weights, prepare_classifier
from embedcache.finetune.regimes import merge_adapters, parameter_groups
from embedcache.probes.selection import macro_f1


def train_fold(
    fabric: Fabric,
    job: FoldJob,
    on_step: Callable[[Step], None] = lambda _: None,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> FoldResult:
    """Train a fold from where it is to its end, and write the result into its folder.

    Where several processes train, each of them calls this; only the first one writes.

    Parameters
    ----------
    fabric
        Fabric of this process.
    job
        The fold.
    on_step, on_epoch
        Called with how far the fold is after each step, and with each epoch once it is saved.

    Raises
    ------
    RunError, DeviceError, StoreWriteError
        The loss or a prediction is not finite, memory is too small, or the disk refused; the
        epochs before stay on the disk.
    """
    devices = [fabric.device.index or 0] if fabric.device.type == "cuda" else []
    with (
        torch.random.fork_rng(devices=devices),
        repeatable(fabric.device),
        reuse_freed_memory(fabric.device),
    ):
        torch.manual_seed(_combined_seed(job.seed, job.fold))
        if devices:
            torch.cuda.reset_peak_memory_stats(fabric.device)
        try:
            training = _Training(fabric, job)
            training.resume()
            with epoch_events(job.logs if fabric.is_global_zero else None) as write_events:
                for number in range(len(training.epochs), job.recipe.epochs):
                    epoch = training.run_epoch(number, on_step)
                    write_events(epoch)
                    on_epoch(epoch)
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


def _combined_seed(*parts: int) -> int:
    """Return one seed of several numbers, from 0 to 2^63 - 1."""
    # Torch takes a signed number of 64 bits; the shift makes it positive.
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class _Training:
    """The state of one fold."""

    def __init__(self, fabric: Fabric, job: FoldJob) -> None:
        self.fabric, self.job, self.recipe = fabric, job, job.recipe
        self.files = FoldFiles(job.folder)
        self.epochs: list[Epoch] = []
        self.best_epoch = 0
        self.lr = 0.0
        self.seconds = 0.0
        self.pictures = FoldPictures(job, fabric.device)
        self.classifier, self.n_droppable = prepare_classifier(
            fabric, job, self.pictures, resumes=self.files.has_state()
        )
        optimizer = torch.optim.AdamW(parameter_groups(self.classifier, job.regime, self.recipe))
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
            weight=class_weights(job, fabric.device),
            label_smoothing=self.recipe.label_smoothing,
            reduction="sum",
        )
        self.model, self.optimizer = fabric.setup(self.classifier, optimizer)

    # An epoch

    def run_epoch(self, epoch: int, on_step: Callable[[Step], None]) -> Epoch:
        """Train one epoch, validate, and save the state: when this returns, it is on the disk."""
        start = time.perf_counter()
        seeds = (self.job.seed, self.job.fold, epoch, self.fabric.global_rank)
        torch.manual_seed(_combined_seed(*seeds))
        loss, waited = self._train(epoch, on_step)
        trained = time.perf_counter() - start
        probability = self._predict(self.job.validation)
        codes = self.job.validation.codes
        answers = probability.argmax(axis=1)
        of_truth = probability[np.arange(len(codes)), codes]
        result = Epoch(
            fold=self.job.fold,
            epoch=epoch + 1,
            loss=loss,
            macro_f1=float(macro_f1(codes, answers[None], self.job.n_classes)[0]),
            validation_loss=float(-np.log(of_truth.clip(np.finfo(np.float64).eps)).mean()),
            lr=self.lr,
            images_per_s=len(self.job.train) / trained,
            compute_share=1 - waited / trained,
            seconds=0.0,
        )
        is_best = not self.epochs or _merit(result) > max(map(_merit, self.epochs))
        self.seconds += (spent := time.perf_counter() - start)
        result = replace(result, seconds=spent, is_best=is_best)
        self.epochs.append(result)
        if is_best:
            self.best_epoch = epoch + 1
        self._save(is_best=is_best)
        return result

    def _train(self, epoch: int, on_step: Callable[[Step], None]) -> tuple[float, float]:
        """Return the mean loss, and seconds spent waiting for pictures."""
        job, recipe, fabric = self.job, self.recipe, self.fabric
        batches = epoch_batches(len(job.train), recipe.batch_size, (job.seed, job.fold, epoch))
        shares = self._shares(batches)
        loader = self.pictures.augmented([part for share in shares for part in share], epoch)
        codes = torch.from_numpy(job.train.codes)
        total = torch.zeros((), device=fabric.device)
        last, waited = _Fetched(total), 0.0
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
            self._check(float(last), epoch, step - 1)  # the step before, whose loss is here by now
            so_far = total.clone()
            if fabric.world_size > 1:  # so that all processes stop at the same step
                torch.distributed.all_reduce(so_far)
            last = _Fetched(so_far)
            self._move(epoch * len(batches) + step)
            done = (epoch * len(job.train)) + sum(map(len, batches[:step]))
            on_step(Step(job.fold, epoch + 1, done, recipe.epochs * len(job.train)))
        whole = float(cast(torch.Tensor, fabric.all_reduce(total, reduce_op="sum")))
        self._check(whole, epoch, len(batches))
        return whole / len(job.train), waited

    def _shares(self, batches: Sequence[Codes]) -> list[list[list[int]]]:
        """Return, for each step, the parts in which this process takes its share of the images.

        A step is shared by all processes, and each takes its share in as many parts as the others:
        where batch statistics are shared, the processes meet in every part.
        """
        rank, n_processes = self.fabric.global_rank, self.fabric.world_size
        least = min(map(len, batches))
        if least < n_processes:
            raise RunError(
                f"batches of {least} images cannot be shared by {n_processes} devices; pass "
                "a larger batch_size, or fewer --devices"
            )
        return [
            in_parts(
                batch[rank::n_processes], min(self.recipe.accumulate, len(batch) // n_processes)
            )
            for batch in batches
        ]

    def _check(self, loss: float, epoch: int, step: int) -> None:
        if not math.isfinite(loss):
            raise self._stopped(f"in epoch {epoch + 1}, step {step}: the loss is {loss}")

    def _stopped(self, reason: str) -> RunError:
        return RunError(
            f"fold {self.job.fold} stopped {reason}; the epochs before are kept, but this recipe "
            f"would stop there again: try --set lr={self.recipe.lr / 3:.1g}, or --precision fp32"
        )

    def _move(self, n_steps: int) -> None:
        """Move the weights by one step, the `n_steps`-th of the fold."""
        if self.recipe.clip_norm:
            self.fabric.clip_gradients(
                self.model,
                self.optimizer,
                max_norm=self.recipe.clip_norm,
                error_if_nonfinite=False,  # a loss scaler skips such a step; else the loss tells
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        # The head's two groups are last; the encoder's own rate is what a reader wants to see.
        groups: list[dict[str, Any]] = self.optimizer.param_groups
        self.lr = max(group["lr"] for group in groups[:-2] or groups)
        self.scheduler.step_update(n_steps)
        if self.average is not None:
            self.average.update(self.classifier, step=n_steps)

    # Predictions

    @property
    def evaluated(self) -> Classifier:
        """The weights that are validated and saved: averaged ones, where there are."""
        averaged = self.classifier if self.average is None else self.average.module
        assert isinstance(averaged, Classifier)
        return averaged

    def _predict(self, part: Part) -> Floats:
        """Return the probability of each class, shape (n, n_classes); processes share the work."""
        fabric, model = self.fabric, self.evaluated
        model.eval()
        if fabric.world_size > 1:  # their own batches have moved each one's batch norms
            for buffer in model.buffers():
                torch.distributed.broadcast(buffer, src=0)
        out = torch.zeros(len(part), self.job.n_classes, device=fabric.device)
        first = self.pictures.first_of(part)
        mine = first + np.arange(len(part))[fabric.global_rank :: fabric.world_size]
        with torch.no_grad(), fabric.autocast():
            for numbers, pictures in self.pictures.unchanged(mine):
                out[numbers - first] = model(pictures).float().softmax(1)
        rows = cast(torch.Tensor, fabric.all_reduce(out, reduce_op="sum")).cpu().double()
        if not rows.isfinite().all():  # weights that its last step broke, or an fp16 overflow
            wrong = int((~rows.isfinite().all(1)).sum())
            raise self._stopped(
                f"after epoch {len(self.epochs) + 1}: {wrong} of {len(part)} predictions are nan"
            )
        # The softmax was in the precision of the pass; in float64 the rows add up to 1.
        return np.asarray((rows / rows.sum(1, keepdim=True)).numpy())

    # Survival

    def resume(self) -> None:
        """Go on from the last epoch that was saved, if there is one."""
        if not self.files.has_state():
            return
        state = self.files.read_state()
        self.classifier.load_state_dict(state["classifier"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        # The schedule has no state of its own: it is a function of the number of the step.
        self.optimizer.load_state_dict(state["optimizer"])
        self.fabric.strategy.precision.load_state_dict(state["scaler"])
        self.epochs = [Epoch(**epoch) for epoch in state["epochs"]]
        self.best_epoch, self.seconds = state["best_epoch"], state["seconds"]

    def _save(self, *, is_best: bool) -> None:
        """Write the best weights, then the state that names them; then the last best can go."""
        if not self.fabric.is_global_zero:
            return
        if is_best:
            self.files.write_best(self.best_epoch, self.evaluated.state_dict())
        state = {
            "classifier": self.classifier.state_dict(),
            "average": None if self.average is None else self.average.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.fabric.strategy.precision.state_dict(),
            "epochs": [asdict(epoch) for epoch in self.epochs],
            "best_epoch": self.best_epoch,
            "seconds": self.seconds,
        }
        self.files.write_state(state, self.best_epoch)

    def finish(self) -> FoldResult:
        """Predict with the best epoch's weights, and write predictions and encoder."""
        start = time.perf_counter()
        self.fabric.barrier()  # the first process has written the last state
        classifier = self.evaluated
        classifier.load_state_dict(self.files.read_best(self.best_epoch))
        probability = tuple(self._predict(part) for part in self.job.tests)
        self.seconds += time.perf_counter() - start
        parameters = list(self.classifier.parameters())
        result = FoldResult(
            fold=self.job.fold,
            best_epoch=self.best_epoch,
            probability=probability,
            epochs=tuple(self.epochs),
            cost={
                "seconds": round(self.seconds, 3),
                "peak_memory_bytes": peak_memory_bytes(self.fabric.device),
                "device": _device_name(self.fabric.device),
                "devices": self.fabric.world_size,
                "parameters_trained": sum(p.numel() for p in parameters if p.requires_grad),
                "parameters": sum(p.numel() for p in parameters),
                "blocks_with_drop_path": self.n_droppable,
            },
        )
        if self.fabric.is_global_zero:
            merge_adapters(classifier)
            self.files.write_result(result, classifier.encoder)
        self.fabric.barrier()
        return result


class _Fetched:
    """A number on its way from a device; reading it waits for nothing that was queued later."""

    def __init__(self, value: torch.Tensor) -> None:
        self._here = value.to("cpu", non_blocking=value.is_cuda)
        self._event = torch.cuda.Event() if value.is_cuda else None
        if self._event is not None:
            self._event.record(torch.cuda.current_stream(value.device))

    def __float__(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return float(self._here)


def _merit(epoch: Epoch) -> tuple[float, float]:
    """Return what is to be largest: the score, and among equals the smaller loss."""
    return epoch.macro_f1, -epoch.validation_loss


def _device_name(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor's model."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            return next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
