"""What the nodes of both trainings have in common."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from construction_panoptic.annotations.json_stream import json_parts
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import DetectionSettings, TrainingSettings
from construction_panoptic.files import UNCHANGED
from construction_panoptic.models.detr import fetch_weights
from construction_panoptic.parallel import collectives
from construction_panoptic.parallel.device import process_count
from construction_panoptic.parallel.messages import Work
from construction_panoptic.parallel.processes import in_processes
from construction_panoptic.parallel.ray_processes import in_ray
from construction_panoptic.signals import deferred_interruption
from construction_panoptic.training.loading import BatchLoader, build_loader
from construction_panoptic.training.loop import EpochResult
from construction_panoptic.training.samples import DetectionSamples, PanopticSamples
from construction_panoptic.visualisation.progress import ProgressSheet

TrainingOutputs = tuple[dict[str, Any] | str, pd.DataFrame, pd.DataFrame, Image.Image | str, dict[str, Any]]


def run_training(work: Work, arguments: tuple[Any, ...], settings: DetectionSettings) -> Iterator[TrainingOutputs]:
    """Run what each process of a training does in as many as the settings ask for, where they ask for.

    Args:
        work: called as ``work(*arguments, stop=…)``; see `in_processes`.
        arguments: what pickle can take.
        settings: those of the stage.

    Yields:
        What the first process yields.
    """
    if settings.weights is not None:
        fetch_weights(settings.weights)  # once for all processes, and a signal ends it at once
    with deferred_interruption() as stop:
        if settings.execution.engine == "ray":
            yield from in_ray(work, arguments, settings.devices, settings.device, stop)
        else:
            yield from in_processes(work, arguments, process_count_of(settings), stop)


def process_count_of(settings: TrainingSettings) -> int:
    """Give the number of processes that train together; with Ray and ``auto``, only these processes know it.

    Raises:
        ParameterError: there are not so many CUDA devices.
    """
    if settings.execution.engine == "ray":
        return collectives.size() if settings.devices == "auto" else settings.devices
    return process_count(settings.devices, settings.device)


def outputs_of(epochs: Iterator[EpochResult], progress: ProgressSheet) -> Iterator[TrainingOutputs]:
    """Give the outputs of each epoch, in the order in which to save them.

    Best checkpoint, history, timings, picture of the progress, last checkpoint. That comes last: a run that is killed
    in between redoes the epoch. Within an epoch, only the last checkpoint is new.
    """
    for result in epochs:
        best = UNCHANGED if result.best is None else result.best
        picture = (progress.take(result.epoch) if result.complete else None) or UNCHANGED
        yield best, _table(result.history), _table(result.timings), picture, result.checkpoint


def _table(rows: list[dict[str, float]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=None if rows else ["epoch"])


def loader_of(
    make_samples: Callable[..., DetectionSamples | PanopticSamples],
    data: Mapping[str, Any],
    settings: DetectionSettings,
    *,
    training: bool,
) -> BatchLoader:
    """Build the loader of a stage's training or validation images.

    Args:
        make_samples: the class of samples, with its folders given.
        data: the COCO file, loaded.
        settings: those of the stage.
        training: whether for training.
    """
    samples = make_samples(
        data, settings=settings.augmentation, training=training, seed=settings.seed, cache_mb=settings.cache_mb
    )
    samples.check_labels(class_count(data))
    return build_loader(
        samples,
        batch_size=settings.batch_size if training else settings.validation_batch_size,
        shuffle=training,
        seed=settings.seed,
        workers=settings.workers,
        pin_memory=torch.cuda.is_available() and settings.device != "cpu",
        aspects=samples.aspects if training and settings.aspect_ratio_batches else None,
    )


def class_count(data: Mapping[str, Any]) -> int:
    """Give the highest category id + 1; the model has one more output, for no-object."""
    return max(category["id"] for category in data["categories"]) + 1


def fingerprint_of(
    data: Mapping[str, Any],
    model: DetrSettings,
    settings: DetectionSettings,
    detector: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Name all that the result of a training depends on: it goes on from a checkpoint only if these are the same."""
    fingerprint = {
        "data": _digest(data),
        "model": model.model_dump(mode="json"),
        "settings": settings.fingerprint(process_count_of(settings)),
    }
    return fingerprint if detector is None else {**fingerprint, "detector": weights_digest(detector)}


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
