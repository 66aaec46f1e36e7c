"""Nodes that train the detector."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.evaluation.validation import box_metrics
from construction_panoptic.models.detr.checkpoint import fetch_starting_weights
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.models.timm_backbones import own_normalisation
from construction_panoptic.pipelines.training_stage import (
    Stage,
    TrainingData,
    TrainingOutputs,
    fingerprint_of,
    run_training,
)
from construction_panoptic.training.samples import DetectionSamples
from construction_panoptic.training.tasks.detection import DetectionTask, build_detector


def train_detector(
    detection_train: Mapping[str, Any],
    detection_val: dict[str, Any],
    converted: ConvertedImages,
    architecture: DetrSettings,
    settings: DetectionSettings,
    resume_from: dict[str, Any] | None,
) -> Iterator[TrainingOutputs]:
    """Train DETR on the boxes of things and stuff; yields when a checkpoint is due, after each epoch at least."""
    fetch_starting_weights(settings.weights, architecture.backbone)  # once for all processes, and a signal ends it
    data = TrainingData(detection_train, detection_val, converted)
    yield from run_training(_stage, data, settings, resume_from, architecture)


def _stage(data: TrainingData, settings: DetectionSettings, architecture: DetrSettings) -> Stage:
    spec = ModelSpec(
        architecture=architecture.model_dump(mode="json"),
        categories=tuple(data.train["categories"]),
        preprocessing=settings.augmentation.preprocessing(),
    )
    model = build_detector(spec.num_classes, architecture, settings)
    spec = own_normalisation(spec, model.backbone[0])
    return Stage(
        DetectionTask(model, settings, spec),
        spec,
        partial(DetectionSamples, image_folder=data.converted.image_folder),
        measure=box_metrics(data.val),
        fingerprint=fingerprint_of(data.train, settings, model=spec.architecture),
    )
