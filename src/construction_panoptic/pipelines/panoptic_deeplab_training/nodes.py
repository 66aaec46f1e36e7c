"""Nodes that train Panoptic-DeepLab."""

from collections.abc import Iterator, Mapping
from typing import Any

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.config.training import PanopticDeeplabTrainingSettings
from construction_panoptic.models.detr.checkpoint import fetch_starting_weights
from construction_panoptic.models.spec import ModelSpec, Preprocessing
from construction_panoptic.models.timm_backbones import own_normalisation
from construction_panoptic.pipelines.panoptic_stage import panoptic_stage
from construction_panoptic.training.running import Stage, TrainingOutputs, fingerprint_of, run_training
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
        preprocessing=Preprocessing.of(settings.augmentation),
        threshold=settings.threshold,
        threshold_stuff=settings.threshold_stuff,
    ).overridden(evaluation.overrides)
    fetch_starting_weights(settings.weights, settings.model.backbone)  # once for all processes
    arguments = (panoptic_train, panoptic_val, converted, settings, spec)
    yield from run_training(_stage, arguments, settings, resume_from)


def _stage(
    train: Mapping[str, Any],
    val: dict[str, Any],
    converted: ConvertedImages,
    settings: PanopticDeeplabTrainingSettings,
    spec: ModelSpec,
) -> Stage:
    network = build_network(spec.num_classes, settings)
    spec = own_normalisation(spec, network.backbone)
    task = PanopticDeeplabTask(network, settings, spec)
    return panoptic_stage(task, spec, train, val, converted, fingerprint_of(train, settings))
