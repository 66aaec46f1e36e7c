"""What the nodes that learn from panoptic annotations have in common; apart from `stage`, which imports no torch."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from construction_panoptic.annotations.records import ConvertedImages
from construction_panoptic.evaluation.validation import panoptic_metrics
from construction_panoptic.models.spec import ModelSpec
from construction_panoptic.training.running import Stage
from construction_panoptic.training.samples import PanopticSamples
from construction_panoptic.training.tasks.protocol import TrainingTask
from construction_panoptic.visualisation.progress import ProgressSheet


def panoptic_stage(
    task: TrainingTask,
    spec: ModelSpec,
    train: Mapping[str, Any],
    val: dict[str, Any],
    converted: ConvertedImages,
    fingerprint: Mapping[str, Any],
) -> Stage:
    """Put together a stage that is measured by PQ; ``train`` and ``val`` are COCO panoptic files."""
    return Stage(
        task,
        spec,
        partial(PanopticSamples, image_folder=converted.image_folder, png_folder=converted.png_folder),
        train,
        val,
        measure=panoptic_metrics(val, converted.png_folder),
        watch=ProgressSheet(val, converted, task.settings.progress_images),
        fingerprint=fingerprint,
    )
