"""Nodes that train the panoptic mask head."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from plotly import graph_objects as go
from torch import Tensor

from construction_panoptic.catalog.folders import ConvertedImages
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.config.model import DetrSettings
from construction_panoptic.config.training import MaskHeadSettings
from construction_panoptic.evaluation.validation import panoptic_validator
from construction_panoptic.models.detr import DetrPanoptic, build_detr_panoptic, compile_detector, load_weights
from construction_panoptic.models.spec import ModelSpec, Preprocessing
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
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.training.state import own_randomness
from construction_panoptic.training.tasks.feature_cache import open_cache
from construction_panoptic.training.tasks.stages import MaskHeadStage
from construction_panoptic.visualisation.charts import training_curves
from construction_panoptic.visualisation.figures import training_figure
from construction_panoptic.visualisation.progress import ProgressSheet


def train_mask_head(
    panoptic_train: Mapping[str, Any],
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    detector: dict[str, Any],
    model_parameters: DetrSettings,
    parameters: MaskHeadSettings,
    evaluation: EvaluationSettings,
    resume_from: dict[str, Any] | None,
) -> Iterator[TrainingOutputs]:
    """Train the mask head behind the frozen detector.

    Yields:
        After each epoch: the best checkpoint (or ``UNCHANGED``), history and timings with a row an epoch, a picture
        of what the model sees (or ``UNCHANGED``), the last checkpoint; and within an epoch where a checkpoint is due.
    """
    threshold = parameters.threshold if evaluation.threshold is None else evaluation.threshold
    weights = detector["model"]
    arguments = (panoptic_train, panoptic_val, converted, weights, model_parameters, parameters, threshold, resume_from)
    yield from run_training(_train, arguments, parameters)


def _train(
    panoptic_train: Mapping[str, Any],
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    detector: dict[str, Tensor],
    architecture: DetrSettings,
    settings: MaskHeadSettings,
    threshold: float,
    resume_from: dict[str, Any] | None,
    *,
    stop: StopRequest,
) -> Iterator[TrainingOutputs]:
    """What each process does."""
    model = build_panoptic(class_count(panoptic_train), architecture, settings, detector)
    spec = ModelSpec(
        architecture=architecture.model_dump(mode="json"),
        categories=tuple(panoptic_train["categories"]),
        preprocessing=Preprocessing.of(settings.augmentation),
        threshold=threshold,
        merging=settings.merging,
    )
    progress = ProgressSheet(panoptic_val, converted, settings.progress_images)
    samples = partial(PanopticSamples, image_folder=converted.image_folder, png_folder=converted.png_folder)
    validate = panoptic_validator(
        loader_of(samples, panoptic_val, settings, training=False),
        panoptic_val,
        converted.png_folder,
        spec,
        precision=settings.precision,
        watch=progress.see_segments,
        stop=stop,
    )
    fingerprint = fingerprint_of(panoptic_train, architecture, settings, detector)
    epochs = train(
        MaskHeadStage(model, settings, open_cache(settings, fingerprint)),
        loader_of(samples, panoptic_train, settings, training=True),
        settings,
        validate=validate,
        monitor="val/pq",
        resume=resume_from,
        fingerprint=fingerprint,
        # All that it takes to build and run the model without this project's configuration.
        extra={"categories": panoptic_train["categories"], "spec": spec.model_dump(mode="json")},
        stop=stop,
    )
    yield from outputs_of(epochs, progress)


def build_panoptic(
    num_classes: int, architecture: DetrSettings, settings: MaskHeadSettings, detector: dict[str, Tensor]
) -> DetrPanoptic:
    """Build the panoptic model: the trained detector, and a mask head with seeded random weights or given ones."""
    with own_randomness(settings.seed):
        model = build_detr_panoptic(num_classes, attention_gain=settings.attention_gain, **architecture.model_dump())
    if settings.weights is not None:
        load_weights(model, settings.weights)
    model.detr.load_state_dict(detector)
    if settings.compile:
        compile_detector(model.detr)
    return model


def draw_curves(history: pd.DataFrame) -> tuple[go.Figure, Figure]:
    """Draw focal and Dice loss, validation PQ and the learning rate against the epoch."""
    return training_curves(history, "mask_head"), training_figure(history, "mask_head")
