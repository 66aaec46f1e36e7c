"""The training loop of all tasks: an iterator that yields once an epoch, and where a checkpoint is due within one.

On a CPU training is the same number for number whether or not it was interrupted and resumed, and however many
processes load the images. On CUDA some kernels add in an order that varies.
"""

import math
import signal
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from construction_panoptic.errors import CheckpointError, ParameterError, explained_shortage
from construction_panoptic.parallel import collectives
from construction_panoptic.parallel.device import resolve_device
from construction_panoptic.parallel.local import keep_freed_memory
from construction_panoptic.signals import StopRequest
from construction_panoptic.training.loading import BatchLoader
from construction_panoptic.training.optimisation import rate_factor
from construction_panoptic.training.progress import Progress
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
from construction_panoptic.training.steps import EpochSteps, Training
from construction_panoptic.training.tasks.protocol import TrainingTask

Validate = Callable[[], Mapping[str, float]]


@dataclass(frozen=True)
class EpochResult:
    """What an epoch gives; or, where ``complete`` is False, a checkpoint within one.

    ``epoch`` is the number of epochs done; ``metrics`` are ``train/…`` and ``val/…``; ``history`` has ``{"epoch": …,
    **metrics}`` of every epoch done, earlier runs' among them, ``timings`` the same of what differs from run to run.
    ``checkpoint`` is the state to resume from, see `train`; ``best`` the same without timings, if this epoch is the
    best so far. Save ``best`` first: after a crash between the two, the epoch is done again.
    """

    epoch: int
    metrics: dict[str, float]
    history: list[dict[str, float]]
    timings: list[dict[str, float]]
    checkpoint: Checkpoint
    best: Checkpoint | None
    complete: bool = True


def train(
    task: TrainingTask,
    train_loader: BatchLoader,
    *,
    validate: Validate | None = None,
    resume: Mapping[str, Any] | None = None,
    fingerprint: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    stop: StopRequest | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[EpochResult, None, None]:
    """Train a task's model, one epoch an iteration.

    Within an epoch there is an iteration more whenever ``settings.checkpoint_every_minutes`` have passed since the last
    one, and when ``stop`` is set: its result is not ``complete``, and gives the checkpoint after the step.

    The global random generators are seeded from ``settings.seed`` for the epochs alone; between two iterations the
    caller has its own states, and may use them. A checkpoint is a dict with ``format_version``, ``stage``, ``epoch``
    (number done), ``under_way`` (see `EpochSteps.state`; None after an epoch), ``finished`` (True for the last epoch
    only), ``model``, ``optimizer``, ``scheduler``, ``rng``, ``others`` (``rng`` and ``under_way`` of each rank but 0),
    ``history``, ``timings`` (empty when finished), ``best`` ({``epoch``, ``value``}), ``settings``, ``fingerprint`` and
    ``extra``, of tensors and plain data. Of two finished trainings with the same results the checkpoints are the same.

    In a process group of `torch.distributed` every process runs this with a model and a loader of its own, and all get
    the same results; see `parallel.collectives`.

    Args:
        task: the model, in its initial state, its losses and settings; the model is moved to the device.
        train_loader: batches of an epoch; `set_epoch` is called before each.
        validate: measures the model every ``validate_every`` epochs and after the last; see `TrainingTask.validate`.
        resume: a checkpoint to go on from, if its fingerprint is the same (see `resumable`). If it has all epochs
            already, its last epoch is given once more (``best`` None) and nothing is trained.
        fingerprint: plain data of all that the training depends on.
        extra: plain data to keep in the checkpoint.
        stop: looked at after every step and in validation; when it is set, a last checkpoint is given.
        clock: seconds, to tell when a checkpoint is due.

    Raises:
        NonFiniteLossError: a loss or gradient is not finite.
        Interrupted: ``stop`` was set.
        ShortageError: memory has run out, or a process that loads was killed.
        CheckpointError: ``resume`` does not fit the model.
        ParameterError: the device is not there, or the task's ``monitor`` is no metric of a validated epoch.
    """
    keep_freed_memory()
    settings, steps = task.settings, len(train_loader)
    device = resolve_device(settings.device)
    task.model.to(device)
    optimizer = AdamW(
        task.parameter_groups(), lr=settings.optimizer.lr, weight_decay=settings.optimizer.weight_decay, fused=True
    )
    schedule = LambdaLR(optimizer, rate_factor(settings.schedule, epochs=settings.epochs, steps_per_epoch=steps))
    seed, stop = settings.seed + collectives.rank(), stop or StopRequest()
    training = Training(task, device, optimizer, schedule, seed, stop, fingerprint or {}, extra or {})
    begun = None
    if resume is not None and resumable(resume, training.fingerprint):
        begun = _restore(training, resume)
        if training.epoch >= settings.epochs:
            logger.info("%s: all %d epochs are done already.", task.name, settings.epochs)
            metrics = {name: value for name, value in training.history[-1].items() if name != "epoch"}
            checkpoint = {**resume, "under_way": None, "finished": True}
            yield EpochResult(training.epoch, metrics, training.history, training.timings, checkpoint, None)
            return
        logger.info("%s: resumed after %s.", task.name, _position(training, begun["step"] if begun else None))
    progress = Progress(task.name, epochs=settings.epochs, steps=steps, device=device, done=training.epoch)
    with explained_shortage(), closing(progress):
        while training.epoch < settings.epochs:
            due = _alarm(settings.checkpoint_every_minutes, clock)
            with own_randomness(training.randomness):
                if training.steps is None:
                    training.steps = EpochSteps(training, train_loader, progress, begun)
                    begun = None
                metrics, timings = _go_on(training, training.steps, validate, due)
            complete = bool(metrics)
            if complete:
                _end_epoch(training, metrics, timings)
                progress.end_epoch(training.epoch - 1, metrics, timings["time/epoch_seconds"])
            checkpoint = _checkpoint(training)
            best = {**checkpoint, "timings": []} if complete and training.best["epoch"] == training.epoch else None
            yield EpochResult(training.epoch, metrics, training.history, training.timings, checkpoint, best, complete)
            _check_stop(training)


def _alarm(minutes: float | None, clock: Callable[[], float]) -> Callable[[], bool]:
    at = clock() + 60 * (minutes or math.inf)
    return lambda: clock() >= at


def _position(training: Training, step: int | None) -> str:
    epoch = f"epoch {training.epoch} of {training.settings.epochs}"
    if step is None:
        return epoch
    return f"{epoch} and step {step} of the next epoch" if training.epoch else f"step {step} of the first epoch"


def _check_stop(training: Training) -> None:
    number = collectives.all_reduce_max([training.stop.number or 0])[0]
    training.stop.number = signal.Signals(number) if number else None
    position = _position(training, None if training.steps is None else training.steps.done.step)
    training.stop.check(f"{training.task.name}: saved after {position}.")


def _restore(training: Training, resume: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Take the checkpoint's state; give that of the epoch that was under way."""
    try:
        training.task.model.load_state_dict(resume["model"])
        training.optimizer.load_state_dict(resume["optimizer"])
        training.schedule.load_state_dict(resume["scheduler"])
    except (KeyError, RuntimeError, ValueError) as error:
        raise CheckpointError(
            f"{training.task.name}: the checkpoint to resume from does not fit the model ({error}); "
            "remove it to start over"
        ) from error
    under_way: Mapping[str, Any] | None = resume.get("under_way")
    training.randomness = resume["rng"]
    if collectives.rank():
        own = resume["others"][collectives.rank() - 1]
        training.randomness, under_way = own["rng"], own["under_way"]
        training.task.model.load_state_dict(own.get("statistics", {}), strict=False)
    training.epoch, training.best = resume["epoch"], resume["best"]
    training.history, training.timings = resume["history"], resume.get("timings", [])
    return under_way


def _go_on(
    training: Training, steps: EpochSteps, validate: Validate | None, due: Callable[[], bool]
) -> tuple[dict[str, float], dict[str, float]]:
    """Go on to the epoch's end, and give its metrics and timings; none if it was left before."""
    training.task.model.train()
    all_done = steps.run(lambda: any(collectives.all_reduce_max([training.stop.number or 0, due()])))
    if all_done and not steps.done.averaged:  # once: the mean of equal numbers can be off by a rounding
        collectives.average_statistics(training.task.model)
        steps.done.averaged = True
    training.randomness = random_state()
    if not all_done:
        return {}, {}
    metrics, timings = steps.metrics(), steps.timings()
    done, settings = training.epoch + 1, training.settings
    began = time.perf_counter()
    if validate is not None and (done % settings.validate_every == 0 or done == settings.epochs):
        training.task.model.eval()
        try:
            with torch.no_grad():
                values = validate()
        except collectives.StoppedError:
            return {}, {}
        training.randomness = random_state()
        metrics |= values
        timings["time/validation_seconds"] = time.perf_counter() - began
    timings["time/epoch_seconds"] = steps.done.seconds + time.perf_counter() - began
    return metrics, timings


def _end_epoch(training: Training, metrics: Mapping[str, float], timings: Mapping[str, float]) -> None:
    """Count the epoch, and note it if it is the best so far."""
    training.epoch += 1
    training.steps = None
    training.history = [*training.history, {"epoch": training.epoch, **metrics}]
    training.timings = [*training.timings, {"epoch": training.epoch, **timings}]
    if "time/validation_seconds" not in timings:
        return
    name, monitor = training.task.name, training.task.monitor
    if monitor not in metrics:
        raise ParameterError(
            f"{name}: there is no metric {monitor!r} to monitor; there are {', '.join(sorted(metrics))}"
        )
    if improved(metrics[monitor], training.best["value"]):
        training.best = {"epoch": training.epoch, "value": metrics[monitor]}


def _checkpoint(training: Training) -> Checkpoint:
    finished = training.epoch == training.settings.epochs
    under_way = None if training.steps is None else training.steps.state()
    # At the end of an epoch, statistics are the same in all processes.
    statistics = {} if under_way is None else snapshot(collectives.running_statistics(training.task.model))
    processes = collectives.all_gather({"rng": training.randomness, "under_way": under_way, "statistics": statistics})
    state = {
        "format_version": FORMAT_VERSION,
        "stage": training.task.name,
        "epoch": training.epoch,
        "under_way": under_way,
        "finished": finished,
        "model": training.task.model.state_dict(),
        "optimizer": training.optimizer.state_dict(),
        "scheduler": training.schedule.state_dict(),
        "rng": training.randomness,
        "others": processes[1:],
        "history": training.history,
        "timings": [] if finished else training.timings,
        "best": training.best,
        "settings": training.settings.model_dump(mode="json"),
        "fingerprint": training.fingerprint,
        "extra": training.extra,
    }
    return {name: snapshot(value) for name, value in state.items()}
