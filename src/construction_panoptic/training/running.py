"""What all training nodes have in common: from the parts of a stage to the outputs of each epoch."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from construction_panoptic.annotations.json_stream import json_parts
from construction_panoptic.config.training import TrainingSettings
from construction_panoptic.files import UNCHANGED
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.parallel import collectives
from construction_panoptic.parallel.device import process_count
from construction_panoptic.parallel.launcher import launch
from construction_panoptic.signals import StopRequest, deferred_interruption
from construction_panoptic.training.loading import BatchLoader, build_loader
from construction_panoptic.training.loop import train
from construction_panoptic.training.samples import DetectionSamples
from construction_panoptic.training.tasks.protocol import Measure, TrainingTask

TrainingOutputs = tuple[dict[str, Any] | str, pd.DataFrame, pd.DataFrame, Image.Image | str, dict[str, Any]]
"""Best checkpoint, history, timings, picture of the progress, last checkpoint."""


class Watch(Protocol):
    """Draws some predictions of each validation."""

    def see(self, image_id: int, prediction: Any) -> None:
        """Look at the prediction for an image, as `TrainingTask.predict` gives it."""

    def take(self, epoch: int) -> Image.Image | None:
        """Give the picture of what all processes have seen since the last one; None if that is nothing."""


@dataclass(frozen=True)
class Stage:
    """All that a process needs to train.

    ``spec``, all that it takes to build and run the model, is kept in the checkpoint. ``samples`` is the class of
    samples with its folders given; ``train`` and ``val`` are COCO files, loaded. ``measure`` turns the task's
    predictions into metrics, ``watch`` draws some of them. ``fingerprint`` is plain data of all that the result depends
    on: training goes on from a checkpoint only if it is the same.
    """

    task: TrainingTask
    spec: ModelSpec
    samples: Callable[..., DetectionSamples]
    train: Mapping[str, Any]
    val: Mapping[str, Any]
    measure: Measure
    watch: Watch
    fingerprint: Mapping[str, Any]


def run_training(
    make: Callable[..., Stage], arguments: tuple[Any, ...], settings: TrainingSettings, resume: dict[str, Any] | None
) -> Iterator[TrainingOutputs]:
    """Train the stage that ``make(*arguments)`` builds in each process, in as many processes as the settings ask
    for.

    ``make`` stands in a module, and pickle can take the arguments. Yields the outputs of each epoch, in the order in
    which to save them: the last checkpoint comes last, so that a run that is killed in between does the epoch again.
    Within an epoch, only the last checkpoint is new.
    """
    with deferred_interruption() as stop:
        execution, devices, device = settings.execution, settings.devices, settings.device
        yield from launch(_train, (make, arguments, resume), stop, execution.engine, devices, device)


def _train(
    make: Callable[..., Stage], arguments: tuple[Any, ...], resume: dict[str, Any] | None, *, stop: StopRequest
) -> Iterator[TrainingOutputs]:
    stage = make(*arguments)
    task, settings = stage.task, stage.task.settings
    normalisation = {"mean": stage.spec.preprocessing.mean, "std": stage.spec.preprocessing.std}
    augmentation = settings.augmentation.model_copy(update=normalisation)
    samples = partial(stage.samples, settings=augmentation, seed=settings.seed, cache_mb=settings.cache_mb)
    training = loader_of(samples(stage.train, training=True), settings, training=True)
    validation = loader_of(samples(stage.val), settings, training=False)

    def watched(predictions: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        for image_id, prediction in predictions:
            stage.watch.see(image_id, prediction)
            yield image_id, prediction

    epochs = train(
        task,
        training,
        validate=lambda: task.validate(validation, lambda found: stage.measure(watched(found)), stop),
        resume=resume,
        fingerprint=stage.fingerprint,
        extra={"categories": stage.train["categories"], "spec": stage.spec.model_dump(mode="json")},
        stop=stop,
    )
    for result in epochs:
        picture = stage.watch.take(result.epoch) if result.complete else None
        best = UNCHANGED if result.best is None else result.best
        yield best, _table(result.history), _table(result.timings), picture or UNCHANGED, result.checkpoint


def _table(rows: list[dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=None if rows else ["epoch"])


def loader_of(samples: DetectionSamples, settings: TrainingSettings, *, training: bool) -> BatchLoader:
    """Build the loader of a stage's training or validation images."""
    return build_loader(
        samples,
        batch_size=settings.batch_size if training else settings.validation_batch_size,
        shuffle=training,
        seed=settings.seed,
        workers=settings.workers,
        pin_memory=torch.cuda.is_available() and settings.device != "cpu",
        aspects=samples.aspects if training and settings.aspect_ratio_batches else None,
        weights=samples.repeat_factors(settings.repeat_threshold) if training and settings.repeat_threshold else None,
    )


def fingerprint_of(data: Mapping[str, Any], settings: TrainingSettings, **other: Any) -> dict[str, Any]:
    """Name all that the result of a training depends on: its loaded COCO file, settings, other plain data."""
    # With Ray and ``auto``, only the processes themselves know how many they are.
    ray, devices = settings.execution.engine == "ray", settings.devices
    known = process_count(devices, settings.device) if not ray else devices
    processes = collectives.world_size() if known == "auto" else known
    return {"data": _digest(data), "settings": settings.fingerprint(processes), **other}


def _digest(data: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    lists = {name: iter(data[name]) for name in ("images", "annotations")}
    for part in json_parts({**data, **lists}, sort_keys=True):
        digest.update(part.encode())
    return digest.hexdigest()


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Give the SHA-256 of named tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
