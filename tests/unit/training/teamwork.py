"""What the processes of `test_processes` do; they import this module."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.errors import InputDataError
from construction_panoptic.evaluation.validation import box_metrics, panoptic_metrics
from construction_panoptic.models.detr.model import build_detr, build_detr_panoptic
from construction_panoptic.parallel import collectives
from construction_panoptic.signals import StopRequest
from construction_panoptic.training.loading import build_loader
from construction_panoptic.training.loop import EpochResult, train
from construction_panoptic.training.samples import DetectionSamples, PanopticSamples
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.detection import DetectionTask
from construction_panoptic.training.tasks.mask_head import MaskHeadTask
from tests.unit.training.conftest import SPEC


def train_detection(
    scene: Any,
    model: dict[str, Any],
    settings: DetectionSettings,
    resume: Any,
    *,
    stop: StopRequest,
    asking: Any = None,
) -> Iterator[EpochResult]:
    torch.set_num_threads(1)
    with own_randomness(settings.seed):
        task = DetectionTask(build_detr(**model), settings, SPEC)
    samples = DetectionSamples(scene.detection, scene.images, settings.augmentation, training=True, seed=settings.seed)
    loader = build_loader(samples, batch_size=settings.batch_size, shuffle=True, seed=settings.seed)
    seen = DetectionSamples(scene.detection, scene.images, settings.augmentation)
    batches = build_loader(seen, batch_size=1, shuffle=False)
    validation, measure = asking(batches) if asking else batches, box_metrics(scene.detection)
    yield from train(task, loader, validate=lambda: task.validate(validation, measure, stop), resume=resume, stop=stop)


def stop_in_the_second_validation(
    scene: Any, model: dict[str, Any], settings: DetectionSettings, *, stop: StopRequest
) -> Iterator[EpochResult]:
    """Only the second process knows of it, during its second batch."""

    class Asking:
        def __init__(self, loader: Any) -> None:
            self.loader, self.passes = loader, 0

        def __iter__(self) -> Iterator[Any]:
            self.passes += 1
            for number, batch in enumerate(self.loader):
                if collectives.rank() == 1 and self.passes == 2 and number == 1:
                    stop.number = signal.SIGTERM
                yield batch

    yield from train_detection(scene, model, settings, None, stop=stop, asking=Asking)


def train_mask_head(
    scene: Any, model: dict[str, Any], settings: DetectionSettings, *, stop: StopRequest
) -> Iterator[EpochResult]:
    torch.set_num_threads(1)
    with own_randomness(settings.seed):
        task = MaskHeadTask(build_detr_panoptic(**model), settings, SPEC)
    places = (scene.panoptic, scene.images, scene.pngs, settings.augmentation)
    loader = build_loader(
        PanopticSamples(*places, training=True, seed=settings.seed),
        batch_size=settings.batch_size,
        shuffle=True,
        seed=settings.seed,
    )
    batches = build_loader(PanopticSamples(*places), batch_size=1, shuffle=False)
    measure = panoptic_metrics(scene.panoptic, scene.pngs)
    yield from train(task, loader, validate=lambda: task.validate(batches, measure, stop), stop=stop)


def train_both(
    scene: Any, model: dict[str, Any], settings: DetectionSettings, *, stop: StopRequest
) -> Iterator[EpochResult]:
    yield from train_detection(scene, model, settings, None, stop=stop)
    yield from train_mask_head(scene, model, settings, stop=stop)


def fail(how: str, folder: Path, *, stop: StopRequest) -> Iterator[int]:
    """The second process fails while the first one waits for it."""
    (folder / str(collectives.rank())).write_text(str(os.getpid()))
    yield 1
    if collectives.rank() == 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "bad input":
            raise InputDataError("site.jpg: not an image")
        raise ZeroDivisionError("in the second process")
    dist.barrier()
    yield 2
