"""Nodes that fine-tune a panoptic model of `transformers`."""

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from plotly import graph_objects as go

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.training import UniversalTrainingSettings
from construction_panoptic.errors import ParameterError
from construction_panoptic.evaluation.validation import panoptic_metrics
from construction_panoptic.models.spec import ModelSpec, Preprocessing
from construction_panoptic.models.universal.hub import licence_of, weights_folder
from construction_panoptic.models.universal.network import pretrained
from construction_panoptic.training.running import Stage, TrainingOutputs, fingerprint_of, run_training, stage_of
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.universal import UniversalTask
from construction_panoptic.visualisation import interactive, still
from construction_panoptic.visualisation.charts import training_chart
from construction_panoptic.visualisation.progress import ProgressSheet

logger = logging.getLogger(__name__)


def find_weights(settings: UniversalTrainingSettings) -> dict[str, Any]:
    """Download the model to start from, if it is not here, and say which it is and under which licence."""
    folder = weights_folder(settings.weights, settings.revision, "universal")
    found = {"name": settings.weights, "licence": licence_of(folder)}
    if folder != Path(settings.weights):
        found["revision"] = folder.name
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
    yield from run_training(_stage, (panoptic_train, panoptic_val, converted, settings, folder), settings, resume_from)


def _stage(
    train: Mapping[str, Any],
    val: dict[str, Any],
    converted: ConvertedImages,
    settings: UniversalTrainingSettings,
    folder: Path,
) -> Stage:
    classes = max(int(category["id"]) for category in train["categories"]) + 1
    with own_randomness(settings.seed):
        network, architecture = pretrained(folder, classes)
    longest = settings.augmentation.max_side
    if network.side is not None and longest > network.side:
        raise ParameterError(
            f"universal.augmentation.max_side: {settings.weights} takes images of at most {network.side} pixels, not "
            f"{longest}."
        )
    spec = ModelSpec(
        kind="universal",
        architecture=architecture,
        categories=tuple(train["categories"]),
        preprocessing=Preprocessing.of(settings.augmentation),
        merging="masks",
        quality_things=settings.quality_things,
        quality_stuff=settings.quality_stuff,
    )
    return stage_of(
        UniversalTask(network, settings, spec),
        spec,
        partial(PanopticSamples, image_folder=converted.image_folder, png_folder=converted.png_folder),
        train,
        val,
        measure=panoptic_metrics(val, converted.png_folder),
        watch=ProgressSheet(val, converted, settings.progress_images),
        fingerprint=fingerprint_of(train, settings, revision=folder.name),
    )


def draw_curves(history: pd.DataFrame) -> tuple[go.Figure, Figure]:
    """Draw the losses, validation PQ and the learning rates against the epoch."""
    chart = training_chart(history, "Training of the universal model")
    return interactive.draw(chart), still.draw(chart)
