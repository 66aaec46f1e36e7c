"""The steps of an epoch, which can be left after any of them, saved, and taken up again."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from construction_panoptic.config.training import TrainingSettings
from construction_panoptic.parallel import collectives
from construction_panoptic.parallel.device import autocast
from construction_panoptic.signals import StopRequest
from construction_panoptic.training.loading import Batch, BatchLoader
from construction_panoptic.training.progress import Progress
from construction_panoptic.training.state import logger
from construction_panoptic.training.tasks.protocol import TrainingTask, total_loss
from construction_panoptic.training.watch import LossWatch, NonFiniteLossError


@dataclass
class Training:
    """Everything that changes in the course of a training."""

    task: TrainingTask
    device: torch.device
    optimizer: Optimizer
    schedule: LRScheduler
    randomness: int | Mapping[str, Any]
    stop: StopRequest
    fingerprint: Mapping[str, Any]
    extra: Mapping[str, Any]
    epoch: int = 0
    steps: "EpochSteps | None" = None
    history: list[dict[str, float]] = field(default_factory=list)
    timings: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=lambda: {"epoch": None, "value": None})

    @property
    def settings(self) -> TrainingSettings:
        """Those of the task."""
        return self.task.settings

    @property
    def careful(self) -> bool:
        """Whether numbers are looked at before the optimiser uses them, which makes CUDA wait."""
        return self.device.type == "cpu" or self.settings.on_non_finite == "skip"


@dataclass
class StepsDone:
    """Those of an epoch under way, as a checkpoint holds them."""

    step: int = 0
    images: int = 0
    skipped: int = 0
    losses: dict[str, Any] = field(default_factory=dict)  # see `LossWatch`
    rates: dict[str, float] = field(default_factory=dict)  # of the last step
    averaged: bool = False  # the running statistics, over the processes
    seconds: float = 0.0
    waited: float = 0.0


class EpochSteps:
    """The steps of the epoch under way; ``begun`` is the `state` of the same epoch's steps in an earlier run."""

    def __init__(
        self, training: Training, loader: BatchLoader, progress: Progress, begun: Mapping[str, Any] | None
    ) -> None:
        self._training, self._progress = training, progress
        self.done = StepsDone(**(begun or {}))
        every = 1 if training.careful else 20
        self._watch = LossWatch(training.task.name, training.epoch + 1, self.done.losses, every=every)
        self._count = len(loader)
        loader.set_epoch(training.epoch, start=self.done.step)
        self._batches = iter(loader)
        progress.start_epoch(training.epoch, self.done.step)

    def run(self, until: Callable[[], bool]) -> bool:
        """Take steps up to the epoch's end, or until ``until`` says so after one of them; whether all are done."""
        began = time.perf_counter()
        try:
            while self.done.step < self._count:
                before = time.perf_counter()
                batch = self._next()
                self.done.waited += time.perf_counter() - before
                if batch is None:
                    return False
                self._take(batch)
                if until():
                    return False
            self._watch.read()
            return True
        finally:
            self.done.seconds += time.perf_counter() - began

    def state(self) -> dict[str, Any]:
        """What it takes to go on after the last step, see `StepsDone`."""
        self._watch.read()
        self.done.losses = self._watch.state
        return asdict(self.done)

    def metrics(self) -> dict[str, float]:
        """``train/…``: the means of the numbers logged, and the learning rates of the last step."""
        values = {**collectives.all_reduce_mean(self._watch.means()), **self.done.rates}
        if self._training.settings.on_non_finite == "skip":
            values["skipped_steps"] = float(self.done.skipped)
        return {f"train/{name}": value for name, value in values.items()}

    def timings(self) -> dict[str, float]:
        """``train/images_per_second`` and ``train/data_wait_share``."""
        return {
            "train/images_per_second": collectives.world_size() * self.done.images / self.done.seconds,
            "train/data_wait_share": self.done.waited / self.done.seconds,
        }

    def _take(self, batch: Batch) -> None:
        self.done.rates = _rates(self._training.optimizer)
        epochs_done = self._training.epoch + self.done.step / self._count
        self._training.task.before_step(epochs_done / self._training.settings.epochs)
        # As if all processes' images were one batch.
        batch = batch.padded(*collectives.all_reduce_max(batch.images.shape[-2:]))
        self._guarded_step(batch)
        self._progress.step(self._watch.means())
        self.done.step += 1
        self.done.images += len(batch)

    def _next(self) -> Batch | None:
        try:
            return next(self._batches)
        except RuntimeError:
            if self._training.stop.number is None:
                raise
            return None

    def _guarded_step(self, batch: Batch) -> None:
        """One step, or none where its numbers are not finite and may be skipped."""
        training = self._training
        skip = training.settings.on_non_finite == "skip"
        buffers = [buffer.clone() for buffer in training.task.model.buffers()] if skip else []
        try:
            self._watch.add(batch.file_names, self._step(batch.to(training.device)))
        except NonFiniteLossError as error:
            earlier = sum(int(epoch.get("train/skipped_steps", 0)) for epoch in training.history)
            if not skip or earlier + self.done.skipped >= training.settings.max_skipped:
                raise
            self.done.skipped += 1
            for buffer, before in zip(training.task.model.buffers(), buffers, strict=True):
                buffer.copy_(before)  # running statistics have seen the batch
            what = str(error).partition(". Look at")[0]
            skipped, most = earlier + self.done.skipped, training.settings.max_skipped
            logger.warning("%s. Skipped (%d of at most %d).", what, skipped, most)
        training.schedule.step()

    def _step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the optimiser; gives the loss, its terms and the norm of the gradient before clipping."""
        training = self._training
        training.optimizer.zero_grad(set_to_none=True)
        values = self._gradients(batch)
        if collectives.world_size() > 1 and training.careful and not bool(values["loss"].isfinite()):
            # Before all processes' gradients are mixed, and none knows whose images they were.
            raise self._watch.failed_step(batch.file_names, f"loss {float(values['loss']):.4g}")
        parameters = [item for group in training.optimizer.param_groups for item in group["params"]]
        collectives.average_gradients(parameters)
        max_norm = training.settings.optimizer.clip_max_norm or math.inf
        values["gradient_norm"] = nn.utils.clip_grad_norm_(parameters, max_norm)
        if not training.careful or all(bool(value.isfinite()) for value in values.values()):
            training.optimizer.step()
        return values

    def _gradients(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the batch's gradients, part by part; give the loss and its terms.

        Each part is divided by the mean over the processes of what the whole batch is divided by, since gradients are
        averaged over the processes, as in DETR.
        """
        training = self._training
        normalisers = collectives.all_reduce_mean(training.task.normalisers(batch))
        values: dict[str, Tensor] = {}
        for part in batch.parts(training.settings.micro_batches):
            try:
                with autocast(training.device, training.settings.precision):
                    losses = training.task.losses(part)
            except FloatingPointError as error:
                raise self._watch.failed_step(batch.file_names, str(error)) from error
            loss, terms = total_loss(losses, normalisers)
            loss.backward()
            for name, value in {"loss": loss.detach(), **terms}.items():
                values[name] = values[name] + value if name in values else value
        return values


def _rates(optimizer: Optimizer) -> dict[str, float]:
    groups = optimizer.param_groups
    return {"lr" if group["name"] == "main" else f"lr_{group['name']}": float(group["lr"]) for group in groups}
