"""Nodes that train the detector."""

import logging
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from plotly import graph_objects as go

from construction_panoptic.catalog.folders import ConvertedImages
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import DetectionSettings
from construction_panoptic.evaluation.validation import detection_validator
from construction_panoptic.models.detr import Detr, build_detr, compile_detector, load_weights
from construction_panoptic.signals import StopRequest
from construction_panoptic.training.loop import train
from construction_panoptic.training.running import (
    TrainingOutputs,
    class_count,
    fingerprint_of,
    loader_of,
    outputs_of,
    run_training,
)
from construction_panoptic.training.samples import DetectionSamples
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.stages import DetectionStage
from construction_panoptic.visualisation import interactive, still
from construction_panoptic.visualisation.charts import training_chart
from construction_panoptic.visualisation.progress import ProgressSheet

logger = logging.getLogger(__name__)


def train_detector(
    detection_train: Mapping[str, Any],
    detection_val: dict[str, Any],
    converted: ConvertedImages,
    model_parameters: DetrSettings,
    parameters: DetectionSettings,
    resume_from: dict[str, Any] | None,
) -> Iterator[TrainingOutputs]:
    """Train DETR on the boxes of things and stuff.

    Yields:
        After each epoch: the best checkpoint (or ``UNCHANGED``), history and timings with a row an epoch, a picture
        of what the model sees (or ``UNCHANGED``), the last checkpoint; and within an epoch where a checkpoint is due.
    """
    arguments = (detection_train, detection_val, converted, model_parameters, parameters, resume_from)
    yield from run_training(_train, arguments, parameters)


def _train(
    detection_train: Mapping[str, Any],
    detection_val: dict[str, Any],
    converted: ConvertedImages,
    architecture: DetrSettings,
    settings: DetectionSettings,
    resume_from: dict[str, Any] | None,
    *,
    stop: StopRequest,
) -> Iterator[TrainingOutputs]:
    """What each process does."""
    stage = DetectionStage(build_detector(class_count(detection_train), architecture, settings), settings)
    progress = ProgressSheet(detection_val, converted, settings.progress_images)
    samples = partial(DetectionSamples, image_folder=converted.image_folder)
    validate = detection_validator(
        loader_of(samples, detection_val, settings, training=False),
        detection_val,
        precision=settings.precision,
        watch=progress.see_boxes,
        stop=stop,
    )
    epochs = train(
        stage,
        loader_of(samples, detection_train, settings, training=True),
        settings,
        validate=validate,
        monitor="val/ap",
        resume=resume_from,
        fingerprint=fingerprint_of(detection_train, architecture, settings),
        extra={"categories": detection_train["categories"]},
        stop=stop,
    )
    yield from outputs_of(epochs, progress)


def build_detector(num_classes: int, architecture: DetrSettings, settings: DetectionSettings) -> Detr:
    """Build the detector with seeded random weights, or from published ones."""
    with own_randomness(settings.seed):
        model = build_detr(num_classes, **architecture.model_dump())
    if settings.weights is not None:
        report = load_weights(model, settings.weights)
        logger.info("Fine-tuning from %s: %s", settings.weights, report)
    if settings.compile:
        compile_detector(model)
    return model


def draw_curves(history: pd.DataFrame) -> tuple[go.Figure, Figure]:
    """Draw losses, errors, validation AP and learning rates against the epoch."""
    chart = training_chart(history, "Training of the detector")
    return interactive.draw(chart), still.draw(chart)
