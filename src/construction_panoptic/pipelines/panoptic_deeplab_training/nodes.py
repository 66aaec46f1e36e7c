"""Nodes that train Panoptic-DeepLab."""

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from plotly import graph_objects as go

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.config.evaluation import EvaluationSettings
from construction_panoptic.config.training import PanopticDeeplabTrainingSettings
from construction_panoptic.evaluation.validation import panoptic_metrics
from construction_panoptic.models.spec import ModelSpec, Preprocessing
from construction_panoptic.models.timm_backbones import TimmBackbone
from construction_panoptic.training.running import Stage, TrainingOutputs, class_count, fingerprint_of, run_training
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.training.tasks.panoptic_deeplab import PanopticDeeplabTask, build_network
from construction_panoptic.visualisation import interactive, still
from construction_panoptic.visualisation.charts import training_chart
from construction_panoptic.visualisation.progress import ProgressSheet


def train_panoptic_deeplab(
    panoptic_train: Mapping[str, Any],
    panoptic_val: dict[str, Any],
    converted: ConvertedImages,
    settings: PanopticDeeplabTrainingSettings,
    evaluation: EvaluationSettings,
    resume_from: dict[str, Any] | None,
) -> Iterator[TrainingOutputs]:
    """Train Panoptic-DeepLab.

    Yields:
        After each epoch, and within one where a checkpoint is due: see `TrainingOutputs`.
    """
    if settings.weights is not None:
        build_network(class_count(panoptic_train), settings)  # downloads once for all processes
    threshold = settings.threshold if evaluation.threshold is None else evaluation.threshold
    arguments = (panoptic_train, panoptic_val, converted, settings, threshold)
    yield from run_training(_stage, arguments, settings, resume_from)


def _stage(
    train: Mapping[str, Any],
    val: dict[str, Any],
    converted: ConvertedImages,
    settings: PanopticDeeplabTrainingSettings,
    threshold: float,
) -> Stage:
    network = build_network(class_count(train), settings)
    augmentation = settings.augmentation
    if isinstance(network.backbone, TimmBackbone):  # its weights were trained with a normalisation of their own
        own = {"mean": network.backbone.mean, "std": network.backbone.std}
        augmentation = augmentation.model_copy(update=own)
    spec = ModelSpec(
        kind="panoptic_deeplab",
        architecture=settings.model.model_dump(mode="json"),
        categories=tuple(train["categories"]),
        preprocessing=Preprocessing.of(augmentation),
        threshold=threshold,
    )
    samples = partial(
        PanopticSamples,
        image_folder=converted.image_folder,
        png_folder=converted.png_folder,
        settings=augmentation,
        seed=settings.seed,
        cache_mb=settings.cache_mb,
    )
    return Stage(
        task=PanopticDeeplabTask(network, settings, spec),
        training=samples(train, training=True),
        validation=samples(val),
        measure=panoptic_metrics(val, converted.png_folder),
        watch=ProgressSheet(val, converted, settings.progress_images),
        fingerprint=fingerprint_of(train, settings),
        extra={"categories": train["categories"], "spec": spec.model_dump(mode="json")},
    )


def draw_curves(history: pd.DataFrame) -> tuple[go.Figure, Figure]:
    """Draw the losses, validation PQ and the learning rates against the epoch."""
    chart = training_chart(history, "Training of Panoptic-DeepLab")
    return interactive.draw(chart), still.draw(chart)
