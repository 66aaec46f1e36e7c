"""Nodes that train Panoptic-DeepLab."""

from collections.abc import Iterator, Mapping
from typing import Any

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.config.training import PanopticDeeplabTrainingSettings
from construction_panoptic.models.detr.checkpoint import fetch_starting_weights
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.models.timm_backbones import own_normalisation
from construction_panoptic.pipelines.training_stage import (
    Stage,
    TrainingData,
    TrainingOutputs,
    fingerprint_of,
    panoptic_stage,
    run_training,
)
from construction_panoptic.training.tasks.panoptic_deeplab import PanopticDeeplabTask, build_network


def train_panoptic_deeplab(
    panoptic_train: Mapping[str, Any],
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    settings: PanopticDeeplabTrainingSettings,
    evaluation: EvaluationSettings,
    resume_from: dict[str, Any] | None,
) -> Iterator[TrainingOutputs]:
    """Train Panoptic-DeepLab; yields when a checkpoint is due, after each epoch at least."""
    spec = ModelSpec(
        kind="panoptic_deeplab",
        architecture=settings.model.model_dump(mode="json"),
        categories=tuple(panoptic_train["categories"]),
        preprocessing=settings.augmentation.preprocessing(),
        threshold=settings.threshold,
        threshold_stuff=settings.threshold_stuff,
    ).overridden(evaluation.overrides)
    fetch_starting_weights(settings.weights, settings.model.backbone)  # once for all processes
    data = TrainingData(panoptic_train, panoptic_val, converted)
    yield from run_training(_stage, data, settings, resume_from, spec)


def _stage(data: TrainingData, settings: PanopticDeeplabTrainingSettings, spec: ModelSpec) -> Stage:
    network = build_network(spec.num_classes, settings)
    spec = own_normalisation(spec, network.backbone)
    task = PanopticDeeplabTask(network, settings, spec)
    return panoptic_stage(task, spec, data, fingerprint_of(data.train, settings))
