"""Nodes that train the panoptic mask head."""

from collections.abc import Iterator, Mapping
from typing import Any

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import MaskHeadSettings
from construction_panoptic.models.detr import fetch_weights
from construction_panoptic.models.files import spec_of
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.pipelines.training_stage import (
    Stage,
    TrainingData,
    TrainingOutputs,
    fingerprint_of,
    panoptic_stage,
    run_training,
    weights_digest,
)
from construction_panoptic.training.tasks.feature_cache import open_cache
from construction_panoptic.training.tasks.mask_head import MaskHeadTask, build_panoptic


def train_mask_head(
    panoptic_train: Mapping[str, Any],
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    detector: dict[str, Any],
    architecture: DetrSettings,
    settings: MaskHeadSettings,
    evaluation: EvaluationSettings,
    resume_from: dict[str, Any] | None,
) -> Iterator[TrainingOutputs]:
    """Train the mask head behind the frozen detector; yields when a checkpoint is due, after each epoch at least."""
    if settings.weights is not None:
        fetch_weights(settings.weights)  # once for all processes, and a signal ends it at once
    data = TrainingData(panoptic_train, panoptic_val, converted)
    yield from run_training(_stage, data, settings, resume_from, detector, architecture, evaluation)


def _stage(
    data: TrainingData,
    settings: MaskHeadSettings,
    detector: dict[str, Any],
    architecture: DetrSettings,
    evaluation: EvaluationSettings,
) -> Stage:
    weights = detector["model"]
    trained = spec_of(detector, "the detector").preprocessing
    normalisation = {"mean": trained.mean, "std": trained.std}
    spec = ModelSpec(
        architecture=architecture.model_dump(mode="json"),
        categories=tuple(data.train["categories"]),
        preprocessing=settings.augmentation.model_copy(update=normalisation).preprocessing(),
        threshold=settings.threshold if evaluation.threshold is None else evaluation.threshold,
        threshold_stuff=evaluation.threshold_stuff,
        merging=settings.merging,
    )
    fingerprint = fingerprint_of(data.train, settings, model=spec.architecture, detector=weights_digest(weights))
    model = build_panoptic(spec.num_classes, architecture, settings, weights)
    task = MaskHeadTask(model, settings, spec, open_cache(settings, fingerprint))
    return panoptic_stage(task, spec, data, fingerprint)
