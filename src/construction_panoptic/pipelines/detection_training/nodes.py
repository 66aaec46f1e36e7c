"""Nodes that train the detector."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.evaluation.validation import box_metrics
from construction_panoptic.models.detr.checkpoint import fetch_starting_weights
from construction_panoptic.models.spec import ModelSpec, Preprocessing
from construction_panoptic.models.timm_backbones import own_normalisation
from construction_panoptic.training.running import Stage, TrainingOutputs, fingerprint_of, run_training
from construction_panoptic.training.samples import DetectionSamples
from construction_panoptic.training.tasks.detection import DetectionTask, build_detector
from construction_panoptic.visualisation.progress import ProgressSheet


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
    arguments = (detection_train, detection_val, converted, architecture, settings)
    yield from run_training(_stage, arguments, settings, resume_from)


def _stage(
    train: Mapping[str, Any],
    val: dict[str, Any],
    converted: ConvertedImages,
    architecture: DetrSettings,
    settings: DetectionSettings,
) -> Stage:
    spec = ModelSpec(
        architecture=architecture.model_dump(mode="json"),
        categories=tuple(train["categories"]),
        preprocessing=Preprocessing.of(settings.augmentation),
    )
    model = build_detector(spec.num_classes, architecture, settings)
    spec = own_normalisation(spec, model.backbone[0])
    return Stage(
        DetectionTask(model, settings, spec),
        spec,
        partial(DetectionSamples, image_folder=converted.image_folder),
        train,
        val,
        measure=box_metrics(val),
        watch=ProgressSheet(val, converted, settings.progress_images),
        fingerprint=fingerprint_of(train, settings, model=spec.architecture),
    )
