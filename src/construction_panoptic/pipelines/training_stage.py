"""What all training nodes have in common: from the parts of a stage to the outputs of each epoch.

It is apart from `stage`, which imports no torch.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from construction_panoptic.annotations.json_stream import json_parts
from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.training import TrainingSettings
from construction_panoptic.evaluation.validation import panoptic_metrics
from construction_panoptic.files import UNCHANGED
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.parallel import collectives
from construction_panoptic.parallel.device import process_count
from construction_panoptic.parallel.launcher import launch
from construction_panoptic.signals import StopRequest, deferred_interruption
from construction_panoptic.training.loading import loader_of
from construction_panoptic.training.loop import train
from construction_panoptic.training.samples import DetectionSamples, PanopticSamples
from construction_panoptic.training.tasks.protocol import Measure, TrainingTask
from construction_panoptic.visualisation.progress import ProgressSheet

TrainingOutputs = tuple[dict[str, Any] | str, pd.DataFrame, pd.DataFrame, Image.Image | str, dict[str, Any]]
"""Best checkpoint, history, timings, picture of the progress, last checkpoint."""


@dataclass(frozen=True)
class TrainingData:
    """COCO files of the training and of the validation set, loaded, and the folders of their images."""

    train: Mapping[str, Any]
    val: dict[str, Any]
    converted: ConvertedImages


@dataclass(frozen=True)
class Stage:
    """What a process trains, and how.

    ``spec``, all that it takes to build and run the model, is kept in the checkpoint. ``samples`` is the class of
    samples with its folders given; ``measure`` turns the task's predictions into metrics. ``fingerprint`` is plain data
    of all that the result depends on: training goes on from a checkpoint only if it is the same.
    """

    task: TrainingTask
    spec: ModelSpec
    samples: Callable[..., DetectionSamples]
    measure: Measure
    fingerprint: Mapping[str, Any]


def panoptic_stage(task: TrainingTask, spec: ModelSpec, data: TrainingData, fingerprint: Mapping[str, Any]) -> Stage:
    """Put together a stage that is measured by PQ; its data are COCO panoptic files."""
    images, pngs = data.converted.image_folder, data.converted.png_folder
    samples = partial(PanopticSamples, image_folder=images, png_folder=pngs)
    return Stage(task, spec, samples, panoptic_metrics(data.val, pngs), fingerprint)


def run_training(
    make: Callable[..., Stage],
    data: TrainingData,
    settings: TrainingSettings,
    resume: dict[str, Any] | None,
    *others: Any,
) -> Iterator[TrainingOutputs]:
    """Train the stage that ``make(data, settings, *others)`` builds in each process, in as many processes as the
    settings ask for.

    ``make`` stands in a module, and pickle can take the arguments. Yields the outputs of each epoch, in the order in
    which to save them: the last checkpoint comes last, so that a run that is killed in between does the epoch again.
    Within an epoch, only the last checkpoint is new.
    """
    arguments = (make, data, settings, resume, *others)
    with deferred_interruption() as stop:
        yield from launch(_train, arguments, stop, settings.execution.engine, settings.devices, settings.device)


def _train(
    make: Callable[..., Stage],
    data: TrainingData,
    settings: TrainingSettings,
    resume: dict[str, Any] | None,
    *others: Any,
    stop: StopRequest,
) -> Iterator[TrainingOutputs]:
    stage = make(data, settings, *others)
    normalisation = {"mean": stage.spec.preprocessing.mean, "std": stage.spec.preprocessing.std}
    augmentation = settings.augmentation.model_copy(update=normalisation)
    samples = partial(stage.samples, settings=augmentation, seed=settings.seed, cache_mb=settings.cache_mb)
    training = loader_of(samples(data.train, training=True), settings, training=True)
    validation = loader_of(samples(data.val), settings, training=False)
    sheet = ProgressSheet(data.val, data.converted, settings.progress_images)

    def watched(predictions: Iterable[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
        for image_id, prediction in predictions:
            sheet.see(image_id, prediction)
            yield image_id, prediction

    epochs = train(
        stage.task,
        training,
        validate=lambda: stage.task.validate(validation, lambda found: stage.measure(watched(found)), stop),
        resume=resume,
        fingerprint=stage.fingerprint,
        extra={"categories": data.train["categories"], "spec": stage.spec.model_dump(mode="json")},
        stop=stop,
    )
    for result in epochs:
        picture = sheet.take(result.epoch) if result.complete else None
        best = UNCHANGED if result.best is None else result.best
        yield best, _table(result.history), _table(result.timings), picture or UNCHANGED, result.checkpoint


def _table(rows: list[dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=None if rows else ["epoch"])


def fingerprint_of(data: Mapping[str, Any], settings: TrainingSettings, **other: Any) -> dict[str, Any]:
    """Name all that the result of a training depends on: its loaded COCO file, settings, other plain data."""
    # With Ray and ``auto``, only the processes themselves know how many they are.
    ray, devices = settings.execution.engine == "ray", settings.devices
    known = process_count(devices, settings.device) if not ray else devices
    processes = collectives.world_size() if known == "auto" else known
    digest = hashlib.sha256()
    lists = {name: iter(data[name]) for name in ("images", "annotations")}
    for part in json_parts({**data, **lists}, sort_keys=True):
        digest.update(part.encode())
    return {"data": digest.hexdigest(), "settings": settings.fingerprint(processes), **other}


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """Give the SHA-256 of named tensors."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode())
        digest.update(state[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
