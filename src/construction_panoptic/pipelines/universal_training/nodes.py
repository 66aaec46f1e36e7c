"""Nodes that fine-tune a panoptic model of `transformers`."""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.training import UniversalTrainingSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.models.universal.hub import terms_of, weights_folder
from construction_panoptic.models.universal.network import pretrained
from construction_panoptic.pipelines.training_stage import (
    Stage,
    TrainingData,
    TrainingOutputs,
    fingerprint_of,
    panoptic_stage,
    run_training,
)
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.universal import UniversalTask

logger = logging.getLogger(__name__)


def find_weights(settings: UniversalTrainingSettings) -> dict[str, Any]:
    """Download the model to start from, if it is not here, and say which it is and under which licence."""
    found = {"name": settings.weights, **terms_of(settings.weights, settings.revision, "universal")}
    logger.info("The licence of the weights of %s: %s", settings.weights, found["licence"])
    return {"weights": found}


def train_universal(
    panoptic_train: Mapping[str, Any],
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    settings: UniversalTrainingSettings,
    found: Mapping[str, Any],
    resume_from: dict[str, Any] | None,
) -> Iterator[TrainingOutputs]:
    """Fine-tune the model; yields when a checkpoint is due, after each epoch at least."""
    folder = weights_folder(settings.weights, found["weights"].get("revision"), "universal")
    data = TrainingData(panoptic_train, panoptic_val, converted)
    yield from run_training(_stage, data, settings, resume_from, folder)


def _stage(data: TrainingData, settings: UniversalTrainingSettings, folder: Path) -> Stage:
    spec = ModelSpec(
        kind="universal",
        categories=tuple(data.train["categories"]),
        preprocessing=settings.augmentation.preprocessing(),
        merging="masks",
        quality_things=settings.quality_things,
        quality_stuff=settings.quality_stuff,
    )
    with own_randomness(settings.seed):
        network, architecture = pretrained(folder, spec.num_classes)
    spec = spec.model_copy(update={"architecture": architecture})
    longest = settings.augmentation.max_side
    if network.side is not None and longest > network.side:
        raise ParameterError(
            f"universal.augmentation.max_side: {settings.weights} takes images of at most {network.side} pixels, not "
            f"{longest}."
        )
    fingerprint = fingerprint_of(data.train, settings, revision=folder.name)
    return panoptic_stage(UniversalTask(network, settings, spec), spec, data, fingerprint)
