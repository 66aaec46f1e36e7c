"""The training loop of both stages: an iterator that yields once an epoch.

It knows nothing of what launched it, of where checkpoints are kept or of how metrics are logged. Training is
the same number for number on a CPU whether or not it was interrupted and resumed, and however many processes
load the images. On CUDA the order, augmentation and dropout are the same too, but some kernels add in an
order that varies; ``torch.use_deterministic_algorithms`` is left to the caller, for it slows training down.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from construction_panoptic.errors import CheckpointError, ParameterError
from construction_panoptic.interruption import StopRequest
from construction_panoptic.training.device import autocast, resolve_device
from construction_panoptic.training.faults import save_batch
from construction_panoptic.training.loading import Batch, BatchLoader
from construction_panoptic.training.optimisation import build_optimizer, build_schedule
from construction_panoptic.training.progress import Progress
from construction_panoptic.training.settings import StageSettings
from construction_panoptic.training.stages import Stage
from construction_panoptic.training.state import (
    FORMAT_VERSION,
    Checkpoint,
    improved,
    logger,
    own_randomness,
    random_state,
    resumable,
    snapshot,
)
from construction_panoptic.training.watch import LossWatch, NonFiniteLossError

Validate = Callable[[nn.Module, int], Mapping[str, float]]


@dataclass(frozen=True)
class EpochResult:
    """What an epoch gives.

    Attributes:
        epoch: number of epochs done, from 1.
        metrics: ``train/…``, ``val/…`` and ``time/…``.
        history: ``{"epoch": …, **metrics}`` of every epoch done, earlier runs' among them.
        checkpoint: the state to resume from; see `train`.
        best: the same checkpoint if this epoch is the best so far, else None. Whoever saves both should save
            ``best`` first: after a crash between the two, training then redoes the epoch.
    """

    epoch: int
    metrics: dict[str, float]
    history: list[dict[str, float]]
    checkpoint: Checkpoint
    best: Checkpoint | None


@dataclass
class _Training:
    """Everything that changes from epoch to epoch."""

    stage: Stage
    settings: StageSettings
    device: torch.device
    optimizer: Optimizer
    schedule: LRScheduler
    randomness: int | Mapping[str, Any]
    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best: dict[str, Any] = field(default_factory=lambda: {"epoch": None, "value": None})
    stop: StopRequest = field(default_factory=StopRequest)
    skipped: int = 0
    recent: deque[Batch] = field(default_factory=deque)
    known: dict[str, Any] = field(default_factory=dict)

    @property
    def careful(self) -> bool:
        """Whether numbers are looked at before the optimiser uses them, which makes CUDA wait."""
        return self.device.type == "cpu" or self.settings.on_non_finite == "skip"


def train(
    stage: Stage,
    train_loader: BatchLoader,
    settings: StageSettings,
    *,
    validate: Validate | None = None,
    monitor: str = "train/loss",
    greater_is_better: bool | None = None,
    resume: Mapping[str, Any] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    stop: StopRequest | None = None,
) -> Generator[EpochResult, None, None]:
    """Train a stage, one epoch an iteration.

    The global random generators are seeded from ``settings.seed`` for the epochs alone; between two
    iterations the caller has its own states, and may use them. A checkpoint is a dict with
    ``format_version``, ``stage``, ``epoch`` (number done), ``finished`` (True for the last epoch only),
    ``model``, ``optimizer``, ``scheduler``, ``rng``, ``history``, ``best`` ({``epoch``, ``value``,
    ``monitor``}), ``settings``, ``fingerprint`` and ``extra``, of tensors and plain data.

    Args:
        stage: the model, in its initial state, and its loss. The model is moved to ``settings.device``.
        train_loader: batches of an epoch; `set_epoch` is called before each.
        settings: epochs, optimiser, schedule, device, seed.
        validate: called with the model (on the device, in eval mode, without gradients) and the number of
            epochs done, every ``validate_every`` epochs and after the last; its metrics get the prefix
            ``val/`` if they have none.
        monitor: the metric by which the best epoch is chosen.
        greater_is_better: how to compare it; by default False if its name has "loss" or "error" in it, else
            True.
        resume: a checkpoint to go on from, if its fingerprint is the same (see `resumable`). If it has all
            epochs already, its last epoch is given once more (``best`` None) and nothing is trained.
        fingerprint: plain data of all that the training depends on.
        extra: plain data to keep in the checkpoint.
        stop: looked at after every step; when it is set, the epoch under way is given up and training ends.

    Yields:
        The result of each epoch.

    Raises:
        NonFiniteLossError: a loss or gradient is not finite.
        Interrupted: ``stop`` was set.
        CheckpointError: ``resume`` does not fit the model.
        ParameterError: the device is not there, or ``monitor`` is no metric of a validated epoch.
    """
    if greater_is_better is None:
        greater_is_better = not any(word in monitor for word in ("loss", "error"))
    training = _start(stage, train_loader, settings)
    training.stop = stop or training.stop
    training.known = {"fingerprint": fingerprint or {}, "extra": extra or {}}
    if resume is not None and resumable(resume, fingerprint or {}):
        _restore(training, resume)
        if training.epoch >= settings.epochs:
            logger.info("%s: all %d epochs are done already.", stage.name, settings.epochs)
            yield _again(training, resume)
            return
        logger.info("%s: resumed after epoch %d of %d.", stage.name, training.epoch, settings.epochs)
    with Progress(stage.name, epochs=settings.epochs, steps=len(train_loader), done=training.epoch) as progress:
        while training.epoch < settings.epochs:
            _check_stop(training)
            with own_randomness(training.randomness):
                metrics = _run_epoch(training, train_loader, validate, progress)
                training.randomness = random_state()
            training.epoch += 1
            training.history = [*training.history, {"epoch": training.epoch, **metrics}]
            is_best = _update_best(training, metrics, monitor, greater_is_better)
            checkpoint = _checkpoint(training, fingerprint or {}, extra or {})
            progress.end_epoch(training.epoch - 1, metrics)
            yield EpochResult(
                epoch=training.epoch,
                metrics=metrics,
                history=[dict(entry) for entry in training.history],
                checkpoint=checkpoint,
                best=checkpoint if is_best else None,
            )
        _check_stop(training)


def _check_stop(training: _Training) -> None:
    done = (
        f"epoch {training.epoch} of {training.settings.epochs} is saved" if training.epoch else "no epoch is done yet"
    )
    training.stop.check(
        f"{training.stage.name}: {done}. Go on with the same command and --only-missing-outputs, "
        "as in: kedro run --only-missing-outputs"
    )


def _start(stage: Stage, train_loader: BatchLoader, settings: StageSettings) -> _Training:
    device = resolve_device(settings.device)
    stage.model.to(device)
    optimizer = build_optimizer(stage.model, settings.optimizer)
    schedule = build_schedule(optimizer, settings.schedule, epochs=settings.epochs, steps_per_epoch=len(train_loader))
    return _Training(stage, settings, device, optimizer, schedule, randomness=settings.seed)


def _restore(training: _Training, resume: Mapping[str, Any]) -> None:
    try:
        training.stage.model.load_state_dict(resume["model"])
        training.optimizer.load_state_dict(resume["optimizer"])
        training.schedule.load_state_dict(resume["scheduler"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{training.stage.name}: the checkpoint to resume from does not fit the model ({error}); "
            "remove it to start over"
        ) from error
    training.randomness = resume["rng"]
    training.epoch = resume["epoch"]
    training.history = [dict(entry) for entry in resume["history"]]
    training.best = {name: resume["best"][name] for name in ("epoch", "value")}
    training.skipped = int(sum(entry.get("train/skipped_steps", 0) for entry in training.history))


def _again(training: _Training, resume: Mapping[str, Any]) -> EpochResult:
    metrics = {name: value for name, value in training.history[-1].items() if name != "epoch"}
    return EpochResult(training.epoch, metrics, training.history, {**resume, "finished": True}, None)


def _run_epoch(
    training: _Training, loader: BatchLoader, validate: Validate | None, progress: Progress
) -> dict[str, float]:
    began = time.perf_counter()
    progress.start_epoch(training.epoch)
    loader.set_epoch(training.epoch)
    training.stage.model.train()
    metrics = _run_steps(training, loader, progress)
    done = training.epoch + 1
    settings = training.settings
    if validate is not None and (done % settings.validate_every == 0 or done == settings.epochs):
        before = time.perf_counter()
        training.stage.model.eval()
        with torch.no_grad():
            values = validate(training.stage.model, done)
        metrics |= {name if "/" in name else f"val/{name}": float(value) for name, value in values.items()}
        metrics["time/validation_seconds"] = time.perf_counter() - before
    metrics["time/epoch_seconds"] = time.perf_counter() - began
    return metrics


def _run_steps(training: _Training, loader: BatchLoader, progress: Progress) -> dict[str, float]:
    every = 1 if training.careful else 20
    watch = LossWatch(training.stage.name, training.epoch + 1, every=every)
    training.recent = deque(maxlen=every)
    skipped_before = training.skipped
    rates = _rates(training.optimizer)
    began = time.perf_counter()
    waited = 0.0
    images = 0
    batches = iter(loader)
    while True:
        before = time.perf_counter()
        batch = _next_batch(training, batches)
        waited += time.perf_counter() - before
        if batch is None:
            break
        _check_stop(training)
        rates = _rates(training.optimizer)
        training.recent.append(batch)
        if _guarded_step(training, batch, watch):
            progress.show_loss(watch.means()["loss"])
        progress.step()
        images += len(batch)
    try:
        watch.read()
    except NonFiniteLossError as error:
        raise _saved(training, error) from error
    if training.settings.on_non_finite == "skip":
        rates = {**rates, "skipped_steps": float(training.skipped - skipped_before)}
    seconds = time.perf_counter() - began
    values = {
        **watch.means(),
        **rates,
        "images_per_second": images / seconds,
        "data_wait_share": waited / seconds,
    }
    return {f"train/{name}": value for name, value in values.items()}


def _next_batch(training: _Training, batches: Iterator[Batch]) -> Batch | None:
    try:
        return next(batches, None)
    except RuntimeError:
        _check_stop(training)  # a signal to the whole process group ends the loading processes too
        raise


def _guarded_step(training: _Training, batch: Batch, watch: LossWatch) -> bool:
    """One step, or none where its numbers are not finite and may be skipped; whether the loss can be shown."""
    training.known["torch_rng"] = torch.get_rng_state()
    skip = training.settings.on_non_finite == "skip"
    buffers = [buffer.clone() for buffer in training.stage.model.buffers()] if skip else []
    was_read = False
    try:
        was_read = watch.add(batch.file_names, _step(training, batch.to(training.device), watch))
    except NonFiniteLossError as error:
        if not skip or training.skipped >= training.settings.skip_at_most:
            raise _saved(training, error) from error
        training.skipped += 1
        for buffer, before in zip(training.stage.model.buffers(), buffers, strict=True):
            buffer.copy_(before)  # running statistics have seen the batch
        what = str(error).partition(". Look at")[0]
        logger.warning("%s. Skipped (%d of at most %d).", what, training.skipped, training.settings.skip_at_most)
    training.schedule.step()
    return was_read


def _saved(training: _Training, error: NonFiniteLossError) -> NonFiniteLossError:
    """The error, after its batch is saved for replay; the weights go with it if they are those before the step."""
    path = training.settings.failed_batch
    batch = next((batch for batch in training.recent if batch.file_names == error.file_names), None)
    if path is None or batch is None:
        return error
    known = {
        "stage": training.stage.name,
        "epoch": training.epoch + 1,
        "model": training.stage.model.state_dict() if training.careful else None,
        "settings": training.settings.model_dump(mode="json"),
        **training.known,
    }
    try:
        save_batch(path, batch, **known)
    except (OSError, RuntimeError) as failure:
        return NonFiniteLossError(f"{error} (The batch could not be saved: {failure}.)", error.file_names)
    hint = "" if training.careful else " --checkpoint and the last checkpoint"
    return NonFiniteLossError(f"{error} To see the batch again: kedro replay {path}{hint}", error.file_names)


def _step(training: _Training, batch: Batch, watch: LossWatch) -> dict[str, Tensor]:
    """One step of the optimiser; gives the loss, its terms and the norm of the gradient before clipping."""
    try:
        with autocast(training.device, training.settings.precision):
            loss, terms = training.stage.step(batch)
    except FloatingPointError as error:
        raise watch.failed_step(batch.file_names, str(error)) from error
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = [item for group in training.optimizer.param_groups for item in group["params"]]
    max_norm = training.settings.optimizer.clip_max_norm or math.inf
    gradient_norm = nn.utils.clip_grad_norm_(parameters, max_norm)
    values = {"loss": loss.detach(), **terms, "gradient_norm": gradient_norm}
    if not training.careful or all(bool(value.isfinite()) for value in values.values()):
        training.optimizer.step()
    return values


def _rates(optimizer: Optimizer) -> dict[str, float]:
    names = {"main": "lr", "backbone": "lr_backbone"}
    return {names[group["name"]]: float(group["lr"]) for group in optimizer.param_groups}


def _update_best(training: _Training, metrics: Mapping[str, float], monitor: str, greater_is_better: bool) -> bool:
    value = metrics.get(monitor)
    if value is None:
        if monitor.startswith("val/") and "time/validation_seconds" not in metrics:
            return False
        raise ParameterError(f"monitor: there is no metric {monitor!r}; there are {', '.join(sorted(metrics))}")
    if not improved(value, training.best["value"], greater_is_better=greater_is_better):
        return False
    training.best = {"epoch": training.epoch, "value": value}
    return True


def _checkpoint(training: _Training, fingerprint: Mapping[str, Any], extra: Mapping[str, Any]) -> Checkpoint:
    state = {
        "format_version": FORMAT_VERSION,
        "stage": training.stage.name,
        "epoch": training.epoch,
        "finished": training.epoch == training.settings.epochs,
        "model": training.stage.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scheduler": training.schedule.state_dict(),
        "rng": training.randomness,
        "history": training.history,
        "best": training.best,
        "settings": training.settings.model_dump(mode="json"),
        "fingerprint": fingerprint,
        "extra": extra,
    }
    return {name: snapshot(value) for name, value in state.items()}
